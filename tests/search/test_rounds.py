"""Whole searches, with trials that write their folders and train nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planned_trials import BATCH, EPOCHS, HOURS, INPUTS, VAL, Killed, Runner, keep, search_of

from img2prompt.config.search import SearchConfig
from img2prompt.config.train import TrainConfig
from img2prompt.distributed.cluster import Resources
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.search import run as search
from img2prompt.search import tuning
from img2prompt.search.heads import StartHead
from img2prompt.search.results import REPORT, TRIALS
from img2prompt.search.trials import TrialJob, worker_seconds_of
from img2prompt.workspace import Stage


@pytest.fixture
def four_cpus(monkeypatch) -> None:
    monkeypatch.setattr("img2prompt.distributed.cluster.resources", lambda: Resources(4, 0))


def searched(monkeypatch, config: SearchConfig, out: Path, **runner: Any) -> tuple[list, Runner]:
    """Run a search; return its rows and the runner of its trials."""
    trial_runner = Runner(**runner)
    monkeypatch.setattr(tuning, "run", trial_runner)
    result = search.run(config, INPUTS, str(out))
    return json.loads(Path(result.path(TRIALS)).read_text()), trial_runner


def without_times(rows: list[dict]) -> list[dict]:
    return [{**row, "seconds": 0} for row in rows]


SEARCHES = {
    "asha": {"scheduler": "asha"},
    "one-epoch": {"scheduler": "one-epoch", "top": 2},
    "none": {"scheduler": "none", "searcher": "random", "trials": 4},
    "tpe": {"searcher": "tpe", "trials": 9},
    "shares": {"shares": (0.2, 0.5, 1.0), "seeds": 2, "top": 2, "scheduler": "none"},
    "compute": {"scheduler": "one-epoch", "top": 2, "compare": "compute", "seeds": 2},
}


@pytest.mark.parametrize("kind", ["asha", "shares"])
def test_the_report_shows_the_rows(four_cpus, monkeypatch, kind: str, tmp_path: Path) -> None:
    rows, _ = searched(monkeypatch, search_of(**SEARCHES[kind]), tmp_path)
    html = (tmp_path / "search" / REPORT).read_text()
    assert html.count("<tr class=") == len(rows)
    best = [row["best"] for row in rows if row["setting"] == rows[0]["setting"]]
    mean = sum(best) / len(best)
    assert f"validation cosine <strong>{mean:.4f}</strong>" in html
    assert ("began on 20&nbsp;% of the training rows" in html) == (kind == "shares")
    for row in rows:
        assert [run["share"] for run in row["runs"]] == sorted({r["share"] for r in row["runs"]})
        assert row["runs"][-1] == {"share": row["share"], "epochs": row["epochs"]}


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_search_killed_anywhere_trains_no_epoch_twice(
    four_cpus, monkeypatch, kind: str, tmp_path: Path
) -> None:
    config = search_of(**SEARCHES[kind])
    rows, whole = searched(monkeypatch, config, tmp_path / "whole")
    trained: list[tuple[str, int]] = []
    for after in (1, len(whole.trained) // 3, len(whole.trained) // 4):
        runner = Runner(die_after=after)
        monkeypatch.setattr(tuning, "run", runner)
        with pytest.raises(Killed):
            search.run(config, INPUTS, str(tmp_path / "killed"))
        trained += runner.trained
    again, last = searched(monkeypatch, config, tmp_path / "killed")
    assert trained + last.trained == whole.trained
    assert len(set(whole.trained)) == len(whole.trained)
    assert without_times(again) == without_times(rows)
    assert not list((tmp_path / "killed").rglob("checkpoints")), "all have ended"
    best = TrainConfig.from_json((tmp_path / "killed/search/best.json").read_text())
    won = rows[0]["setting"]
    assert (best.plan.lora_rate, best.plan.nfz_rate) == (won["lora_rate"], won["nfz_rate"])
    assert rows[0]["best"] == max(row["best"] for row in rows) or kind in ("shares", "compute")


def test_one_epoch_trains_the_best_to_the_end_and_no_other(
    four_cpus, monkeypatch, tmp_path
) -> None:
    rows, _ = searched(monkeypatch, search_of(scheduler="one-epoch", top=2), tmp_path)
    firsts = sorted((row["epochs"][0]["val_cosine"] for row in rows), reverse=True)
    assert len(rows) == 15
    assert [row["end"] for row in rows] == ["finished"] * 2 + ["stopped"] * 13
    assert [row["epochs"][0]["val_cosine"] for row in rows] == firsts
    assert {row["reason"] for row in rows[2:]} == {"not among the best 2 after 1 epochs"}
    assert [row["rows"] for row in rows] == [960 * EPOCHS] * 2 + [960] * 13


def test_equal_compute_gives_cheap_plans_more_epochs(four_cpus, monkeypatch, tmp_path) -> None:
    config = search_of(scheduler="one-epoch", top=1, compare="compute", grace_epochs=2)
    rows, _ = searched(monkeypatch, config, tmp_path)
    stopped = [row for row in rows if row["end"] == "stopped"]
    assert {len(row["epochs"]) for row in stopped} == {2, 3}
    space = json.loads((tmp_path / "search/space.json").read_text())["settings"]
    forward = min(row["flop"] for row in space) / 2  # at least: backward is one product more
    dearest = max(row["flop"] for row in space) * 960
    for row in stopped:
        spent = row["flop"] * row["rows"]
        assert spent <= 2 * (dearest + VAL * 2 * forward)
        assert spent + row["flop"] * 960 > 1.9 * dearest


def test_the_best_on_a_share_are_trained_on_larger_shares(four_cpus, monkeypatch, tmp_path) -> None:
    config = search_of(shares=(0.2, 0.5, 1.0), scheduler="none", reduction=4)
    rows, runner = searched(monkeypatch, config, tmp_path)
    epochs = {name: sum(each == name for each, _ in runner.trained) for name, _ in runner.trained}
    assert [sum(f"share{part}" in name for name in epochs) for part in ("0.2", "0.5")] == [15, 4]
    assert len(epochs) == 15 + 4 + 1
    assert [row["share"] for row in rows] == [1.0] + [0.5] * 3 + [0.2] * 11
    passes = [3 * BATCH, 7 * BATCH, 15 * BATCH]  # whole batches of 200, 500 and 1000 rows
    totals = [EPOCHS * sum(passes[:count]) for count in (3, 2, 1)]
    assert [row["rows"] for row in rows] == [totals[0]] + [totals[1]] * 3 + [totals[2]] * 11
    assert rows[0]["seconds"] == pytest.approx(3600 * HOURS * EPOCHS * 1.7)
    assert rows[1]["reason"] == "not among the best 1/4 on a share of 0.5"
    assert [row["end"] for row in rows] == ["finished"] + ["stopped"] * 14


def test_the_best_are_repeated_and_their_mean_decides(four_cpus, monkeypatch, tmp_path) -> None:
    rows, _ = searched(monkeypatch, search_of(seeds=3, top=2, scheduler="none"), tmp_path)
    groups = [rows[:3], rows[3:6]]
    assert all(sorted(row["seed"] for row in group) == [0, 1, 2] for group in groups)
    means = [np.mean([row["best"] for row in group]) for group in groups]
    assert means[0] > means[1]
    assert all(group[0]["best"] == max(row["best"] for row in group) for group in groups)
    assert [row["seed"] for row in rows[6:]] == [0] * 13
    best = TrainConfig.from_json((tmp_path / "search/best.json").read_text())
    assert best.seed == rows[0]["seed"]
    assert best.optim.share == 1
    names = [row["name"] for row in rows]
    assert len(set(names)) == 19
    assert sum("repeat" in name for name in names) == 4


def test_a_search_ends_when_its_hours_are_spent_and_resumes_with_more(
    four_cpus, monkeypatch, tmp_path: Path
) -> None:
    config = search_of(scheduler="none", max_hours=10.9 * HOURS)
    rows, runner = searched(monkeypatch, config, tmp_path / "some")
    assert len(runner.trained) == 11
    assert [(row["end"], row["reason"]) for row in rows] == [("finished", ""), ("stopped", "limit")]
    again, idle = searched(monkeypatch, config, tmp_path / "some")
    assert (again, idle.trained) == (rows, [])
    more, rest = searched(monkeypatch, config.replace({"max_hours": 0}), tmp_path / "some")
    whole, all_of_it = searched(monkeypatch, config.replace({"max_hours": 0}), tmp_path / "all")
    assert runner.trained + rest.trained == all_of_it.trained
    assert without_times(more) == without_times(whole)


def test_limited_hours_leave_the_other_parts_out(four_cpus, monkeypatch, tmp_path: Path) -> None:
    config = search_of(scheduler="one-epoch", top=2, seeds=2, max_hours=14.5 * HOURS)
    rows, runner = searched(monkeypatch, config, tmp_path)
    assert [epoch for _, epoch in runner.trained] == [1] * 15
    assert {(row["end"], row["reason"]) for row in rows} == {("stopped", "limit")}
    assert rows[0]["best"] == max(row["best"] for row in rows)


def test_a_failed_trial_is_reported_and_run_again(four_cpus, monkeypatch, tmp_path: Path) -> None:
    config = search_of(searcher="random", trials=3, scheduler="none")
    name = searched(monkeypatch, config, tmp_path / "whole")[0][1]["name"]
    rows, _ = searched(monkeypatch, config, tmp_path / "failing", failing=name)
    assert [row["end"] for row in rows] == ["finished", "finished", "failed"]
    assert rows[2]["name"] == name
    assert rows[2]["reason"] == "UserError: the loss is nan"
    assert rows[2]["best"] is None


def test_settings_that_need_too_much_memory_are_left_out(
    four_cpus, monkeypatch, capfd, tmp_path
) -> None:
    searched(monkeypatch, search_of(searcher="random", trials=1), tmp_path / "all")
    space = json.loads((tmp_path / "all/search/space.json").read_text())
    sizes = sorted(row["memory"] for row in space["settings"])
    limit = (sizes[6] + sizes[7]) / 2e9
    config = search_of(max_memory_gb=limit, scheduler="none")
    rows, _ = searched(monkeypatch, config, tmp_path / "small")
    assert sorted(row["memory"] for row in rows) == sizes[:7]
    left_out = json.loads((tmp_path / "small/search/space.json").read_text())["left_out"]
    assert len(left_out) == 8
    printed = capfd.readouterr().err
    for name, reason in left_out.items():
        assert f"left out: {name}: {reason}" in printed
        assert f"GB a worker, max_memory_gb is {limit:g}" in reason
    with pytest.raises(UserError, match=r"max_memory_gb is 1e-06; allowed: .* or more"):
        searched(monkeypatch, search_of(max_memory_gb=1e-6), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_hours_are_predicted_before_the_start(
    four_cpus, monkeypatch, capfd, tmp_path: Path
) -> None:
    config = search_of(searcher="random", trials=2, scheduler="none", peak_tflops=2.0, mfu=0.5)
    rows, _ = searched(monkeypatch, config, tmp_path)
    space = json.loads((tmp_path / "search/space.json").read_text())
    first = space["settings"][0]
    forward = first["hours"] * 3600 * 1e12 / EPOCHS - 960 * first["flop"]
    assert first["flop"] / 3 < forward / VAL < first["flop"], "validation has no backward pass"
    hours = [row["hours"] for row in space["settings"]]
    assert space["hours"] == pytest.approx(2 * np.mean(hours))
    printed = " ".join(capfd.readouterr().err.split())
    assert "1 TFLOP/s a device: --peak-tflops 2, of which 50% are expected (--mfu)" in printed
    assert "16 points: 15 differ, 0 are equal to others" in printed
    assert f"at most {space['hours']:.3g} device-hours for the whole search" in printed
    (tmp_path / "search/manifest.json").unlink()
    searched(monkeypatch, config, tmp_path)
    again = json.loads((tmp_path / "search/space.json").read_text())
    assert again["rate"]["source"] == "measured in 2 runs here"
    spent = sum(row["seconds"] for row in rows) / 3600
    assert spent == HOURS * EPOCHS * 2
    by_name = {row["name"]: row["hours"] for row in again["settings"]}
    assert sum(by_name[row["name"]] for row in rows) == pytest.approx(spent)


def test_the_cost_of_a_trial_is_read_from_its_folder(tmp_path: Path) -> None:
    job = TrialJob(search_of().base, INPUTS, str(tmp_path))
    assert worker_seconds_of(job) == 0
    keep(job, [{"epoch": 1, "val_cosine": 0.1}])
    assert worker_seconds_of(job) == 3600 * HOURS


def test_only_widths_of_the_best_heads_are_tried_on_the_tower(
    four_cpus, monkeypatch, tmp_path: Path
) -> None:
    """One of three widths remains; its trials and the winner start from its head."""
    config = search_of(**{"base.start_from": "probe", "head_widths": (0, 64, 512), "heads": 1})
    head = config.head_grid([64]).heads()[-1]
    draft = Draft.open(str(tmp_path / "head"), Stage.TRAIN, head, {})
    start, requested = StartHead(head, draft.publish()), []

    def best_heads(config, widths, inputs, out) -> dict[int, StartHead]:
        requested.append(set(widths))
        return {64: start}

    monkeypatch.setattr("img2prompt.search.run.best_heads", best_heads)
    rows, runner = searched(monkeypatch, config, tmp_path)
    assert requested == [{0, 64, 512}]
    assert len(rows) == 15
    assert {row["setting"]["head_width"] for row in rows} == {64}
    assert {name.rpartition("head")[2] for name, _ in runner.trained} == {"64"}
    best = TrainConfig.from_json((tmp_path / "search/best.json").read_text())
    assert best.start_from == f"search-heads/{head.name}"
    assert best.head == head.head
    assert best.head.dropout > 0
