"""Jobs in processes of their own: the folders that they write and the tables that they print."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
HELP = {
    "average": ["--runs", "--how {wise-ft,soup}", "--alpha"],
    "blend": ["--runs"],
    "calibrate": ["--name"],
    "demo": ["--prepare.sources.0.prompts", "--probe.optim.epochs", "--finetune.plan.lora-rate"],
    "evaluate": ["--runs", "--split {val,test}", "--neighbours"],
    "export": ["--run", "--name"],
    "features": ["--tower.weights", "--batch-size", "l14-336:"],
    "generate": ["--prompts", "--weights", "--sampling.scheduler", "--max-hours", "turbo:"],
    "plan": ["--pictures"],
    "predict": ["--pictures", "--run", "--prompts", "--nearest"],
    "prepare": ["--sources.0.prompts", "--group.duplicate-cosine", "pictures-small:"],
    "search": ["--trials", "--lora-rates", "l14-336:"],
    "tower": ["--optim.epochs"],
    "train": ["probe-demo:", "lora-l14-336:"],
}


ASK_ALL = """
import contextlib, io, json, runpy, sys

def ask(name):
    sys.argv = [f"jobs/{name}.py", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            assert not end.code, (name, end.code)
    return printed.getvalue()

print(json.dumps({name: ask(name) for name in sys.argv[1:]}))
"""


def environment(join: bool = False) -> dict[str, str]:
    """Environment of a job that starts its own cluster, or joins the cluster of the tests."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token"}
    if not join:
        variables.pop("RAY_ADDRESS", None)
    return variables


def start(name: str, *arguments: str, join: bool = False) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, f"jobs/{name}.py", *arguments],
        cwd=ROOT,
        env=environment(join),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def job(name: str, *arguments: str, out: Path) -> str:
    """Run a job that must succeed and return its output. The first one starts its own cluster."""
    process = start(name, *arguments, "--out", str(out), join=name != "prepare")
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "Traceback" not in printed
    return printed


def cells(printed: str) -> list[list[str]]:
    """Return the rows of the tables in a job's output."""
    lines = (line for line in printed.splitlines() if line.startswith("│"))
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


WITHOUT = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "ray", "transformers", "deepspeed"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, "usage: train.py [preset] [options]"),
        (["lora-demo", "--help"], 0, "--plan.lora-rate"),
        (["lora-demo", "--optim.speed", "3"], 2, "--optim.speed"),
        (["lora-demo", "--name", ".."], 2, "run '..': allowed are printable"),
        (["lora-demo"], 2, "shards holds no finished shards"),
    ],
)
def test_options_and_inputs_are_checked_before_torch_and_ray_are_imported(
    tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    out = [] if "--help" in arguments else ["--out", str(tmp_path)]
    script = [sys.executable, "-c", WITHOUT, "jobs/train.py", *arguments, *out]
    done = subprocess.run(script, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert message in done.stdout + done.stderr


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """Output of `--help` for every job, from one process."""
    script = [sys.executable, "-c", ASK_ALL, *JOBS]
    done = subprocess.run(script, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", JOBS)
def test_help_describes_a_job_and_its_options(helps, name: str) -> None:
    document = (ROOT / "jobs" / f"{name}.py").read_text().split('"""')[1]
    flat = " ".join(helps[name].split())
    assert " ".join(document.split()) in flat
    assert f"{name}.py [preset] [options]" in flat
    assert "--config FILE" in flat
    for word in HELP[name]:
        assert word in flat


@pytest.mark.slow
def test_help_of_a_preset_lists_its_options() -> None:
    printed, _ = start("train", "lora-demo", "--help").communicate(timeout=200)
    for word in ("--out STR", "--plan.lora-rate FLOAT", "(default: 0.45)", "--tower.weights STR"):
        assert word in printed


@pytest.fixture(scope="module")
def done(
    cluster, tiny_tower: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[list[str]]]]:
    """Run each stage by its own command, on 60 prompts; the folder, and each command's table."""
    out = tmp_path_factory.mktemp("jobs")
    pictures = out / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.effect_noise((50, 40), 30 * number + 10).save(pictures / f"noise-{number}.png")
    (pictures / "zero [1].png").touch()
    tower = ("--tower.weights", tiny_tower)
    commands = {
        "prepare": ["--sources.0.prompts", "60", "--sources.0.size", "32", "--shard.size", "32"],
        "features": [*tower, "--batch-size", "16", "--workers", "1"],
        "train": ["probe-demo", *tower, "--optim.epochs", "2", "--optim.batch-size", "16"],
        "evaluate": ["--runs", "probe"],
        "predict": ["--pictures", str(pictures), "--run", "probe", "--nearest", "2"],
        "export": ["--run", "probe"],
    }
    return out, {name: cells(job(name, *given, out=out)) for name, given in commands.items()}


def marked(test):
    """Six commands take minutes on a busy machine."""
    return pytest.mark.timeout(1800)(pytest.mark.ray(pytest.mark.slow(test)))


@marked
def test_prepare_prints_the_counts_of_the_shards(done) -> None:
    out, tables = done
    table = {row[0]: row[1:] for row in tables["prepare"]}
    assert table["pictures listed"] == ["120", "none rejected"]
    manifest = json.loads((out / "shards" / "manifest.json").read_text())
    for name, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert table[f"{name} pictures"][0] == str(manifest["counts"][split])


@marked
def test_features_and_train_print_their_results(done) -> None:
    out, tables = done
    shards = json.loads((out / "shards" / "manifest.json").read_text())["counts"]
    pictures = str(sum(shards[n] for n in ("train", "val", "test")))
    assert tables["features"] == [["pictures", pictures], ["rows", pictures]]
    history = json.loads((out / "runs" / "probe" / "history.json").read_text())
    best = max(history, key=lambda row: row["val_cosine"])
    table = dict(tables["train"])
    assert len(history) == 2
    assert table["best_epoch"] == str(best["epoch"])
    assert table["val_cosine"] == f"{best['val_cosine']:.4f}"


@marked
def test_evaluate_prints_the_scores(done) -> None:
    out, tables = done
    systems = json.loads((out / "evaluation" / "metrics.json").read_text())["systems"]
    expected = [
        [
            name,
            f"{s['mean']:.4f}",
            f"{s['low']:.4f} to {s['high']:.4f}",
            str(s["rows"]),
            str(s["groups"]),
        ]
        for name, s in ((name, scores["all"]) for name, scores in systems.items())
    ]
    assert tables["evaluate"] == expected
    assert list(systems) == ["mean vector", "nearest neighbours", "probe"]


@marked
def test_predict_prints_prompts_and_rejected_pictures(done) -> None:
    out, tables = done
    with open(out / "predictions" / "prompts.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    firsts = [row for row in rows if row["rank"] == "1"]
    assert [row["picture"] for row in firsts] == [f"noise-{n}.png" for n in range(3)]
    # Long cells continue in a second line, whose first cell is empty.
    shown = {row[0]: row[1:] for row in tables["predict"] if row[0]}
    assert list(shown) == [*(f"noise-{n}.png" for n in range(3)), "zero [1].png"]
    cosines = [f"{float(row['cosine']):.4f}" for row in firsts]
    assert [shown[row["picture"]][1] for row in firsts] == cosines
    assert shown["zero [1].png"][0].startswith("unreadable picture: ")


@marked
def test_export_lists_its_files(done) -> None:
    out, tables = done
    files = {name for (name,) in tables["export"]}
    assert {"head.safetensors", "tower/config.json", "tower/model.safetensors"} <= files
    assert all((out / "export" / name).stat().st_size > 0 for name in files)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("prepare", ["pictures", "--sources.0.path", "OUT/absent"], "OUT/absent does not exist"),
        ("prepare", ["--clean.blocked-words", "OUT/absent"], "blocked_words: OUT/absent cannot"),
        ("prepare", ["--encoder", "OUT/absent"], "encoder is 'OUT/absent', which"),
        ("demo", ["--predict.pictures", "OUT/absent"], "pictures is 'OUT/absent': give a folder"),
        ("features", [], "OUT/shards holds no finished shards: run the job"),
        ("train", ["probe-demo"], "OUT/shards holds no finished shards: run the job"),
        ("search", [], "OUT/shards holds no finished shards: run the job"),
        ("evaluate", ["--runs", "lora"], "OUT/runs/lora holds no finished train: run the job"),
        ("predict", ["--pictures", "x"], "OUT/runs/lora holds no finished train: run the job"),
        ("train", ["lora-demo", "--name", ".."], "run '..': allowed are printable names"),
        ("generate", ["--prompts", "OUT/absent.txt"], "prompts: OUT/absent.txt cannot be read"),
        ("generate", ["--name", "shards"], "result 'shards': allowed are names other than"),
        ("tower", ["--name", ".hidden"], "run '.hidden': allowed are printable names"),
        ("search", ["--name", ".."], "result '..': allowed are printable names"),
        ("evaluate", ["--name", "shards"], "result 'shards': allowed are names other than"),
        (
            "predict",
            ["--name", "../x", "--pictures", "x"],
            "result '../x': allowed are printable names",
        ),
        ("export", ["--run", ".."], "run '..': allowed are printable names"),
        ("demo", ["--evaluate.name", ".."], "result '..': allowed are printable names"),
    ],
)
def test_missing_input_is_reported_before_a_cluster_starts(
    tmp_path: Path, monkeypatch, capsys, name: str, arguments: list[str], message: str
) -> None:
    def connect(**options: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr("img2prompt.distributed.cluster.connect", connect)
    own = [argument.replace("OUT", str(tmp_path)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *own, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert message.replace("OUT", str(tmp_path)) in " ".join(errors.split())
    assert "Traceback" not in errors
