"""Every stage, one after the other: raw pictures -> scores, submission and readable prompts."""

import csv
import dataclasses
import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from img2prompt.artifact import CONFIG, METRICS, Artifact
from img2prompt.config.chain import ChainConfig
from img2prompt.data.shards import read_rows
from img2prompt.data.vectors import matrix
from img2prompt.predict import evaluate, predict
from img2prompt.predict.metrics import cosine
from img2prompt.predictors.trained import TrainedRun
from img2prompt.prepare import features
from img2prompt.prepare import run as prepare
from img2prompt.prepare.run import PreparedData
from img2prompt.storage import delete_folder, join, read_bytes, write_bytes
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs

SAMPLES = "samples"


@dataclass(frozen=True)
class ChainResult:
    """What a chain has made."""

    prepared: PreparedData
    evaluation: Artifact
    predictions: Artifact


def check(config: ChainConfig, out: str) -> None:
    """Raise UserError for missing pictures before a cluster is started and a model trained."""
    prepare.check(config.prepare, out)
    if config.predict.pictures:
        predict.list_pictures(config.predict.pictures)


def run(config: ChainConfig, out: str) -> ChainResult:
    """Make, or find finished, everything under `out`; the config is kept when all stages agree."""
    prepared = prepare.run(config.prepare, out)
    embedded = features.run(config.features, prepared.shards, join(out, "features"))
    inputs = TrainInputs(prepared.shards, embedded)
    probe = train.run(config.probe, inputs, _run_folder(out, config.probe.name))
    start = probe if config.finetune.start_from else None
    inputs = TrainInputs(prepared.shards, start=start)
    tuned = train.run(config.finetune, inputs, _run_folder(out, config.finetune.name))
    runs = [
        TrainedRun(probe, name=config.probe.name),
        TrainedRun(tuned, name=config.finetune.name),
    ]
    scoring = dataclasses.replace(config.evaluate, runs=tuple(run.name for run in runs))
    evaluation = evaluate.run(scoring, prepared, embedded, runs, join(out, config.evaluate.name))
    write_bytes(join(out, METRICS), read_bytes(evaluation.path(METRICS)))
    predicting = dataclasses.replace(config.predict, run=config.finetune.name)
    if not predicting.pictures:
        folder = _write_samples(prepared, config.samples, join(out, SAMPLES))
        predicting = dataclasses.replace(predicting, pictures=folder)
        predicting = dataclasses.replace(predicting, name=f"{SAMPLES}-{predicting.name}")
    predictions = predict.run(predicting, runs[-1], prepared, join(out, predicting.name))
    write_bytes(join(out, CONFIG), config.to_json().encode())
    return ChainResult(prepared, evaluation, predictions)


def _run_folder(out: str, name: str) -> str:
    return join(out, "runs", name)


def _write_samples(prepared: PreparedData, count: int, folder: str) -> str:
    """Pictures from all over the test split as files, with ids and prompts in `prompts.csv`.

    Files are numbered: an id may hold what no file name or submission can.
    """
    delete_folder(folder)
    rows = _some_rows(prepared.shards, count)
    texts = prepared.targets.read_tables("rows", ["prompt_id", "prompt"])
    prompt = dict(zip(texts["prompt_id"].to_pylist(), texts["prompt"].to_pylist(), strict=True))
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["imgId", "id", "prompt"])
    ending = "png" if prepared.shards.config["encoding"] == "png" else "jpg"
    for number, row in enumerate(rows.to_pylist()):
        name = f"{number:05d}"
        write_bytes(join(folder, f"{name}.{ending}"), row["image"])
        writer.writerow([name, row["id"], prompt[row["prompt_id"]]])
    write_bytes(join(folder, "prompts.csv"), sink.getvalue().encode())
    return folder


def _some_rows(shards: Artifact, count: int) -> pa.Table:
    """Test rows at even distances: neighbours are alike, as shards keep the order of archives."""
    names = shards.names("test/")
    ends = np.cumsum([shards.files[name].rows for name in names])
    found = []
    for place in np.unique(np.linspace(0, ends[-1] - 1, count).astype(int)):
        file = int(np.searchsorted(ends, place, side="right"))
        row = int(place - ends[file] + shards.files[names[file]].rows)
        found.append(
            read_rows(shards.path(names[file]), row, row + 1, ["id", "prompt_id", "image"])
        )
    return pa.concat_tables(found)


def samples_summary(chain: ChainResult, folder: str) -> list[list[object]]:
    """Rows for a table: each sample's own prompt above the nearest known one.

    Both with their cosine to the predicted vector.
    """
    truth = csv.DictReader(io.StringIO(read_bytes(join(folder, "prompts.csv")).decode()))
    known = {row["imgId"]: row["prompt"] for row in truth}
    vectors = chain.predictions.read_tables("vectors-")
    predicted = dict(zip(vectors["id"].to_pylist(), matrix(vectors["vector"]), strict=True))
    texts = chain.prepared.targets.read_tables("rows", ["prompt", "target"])
    targets = dict(zip(texts["prompt"].to_pylist(), matrix(texts["target"]), strict=True))
    rows: list[list[object]] = []
    for name, nearest, similarity in predict.summary(chain.predictions, limit=len(known)):
        own = known[str(name)]
        rows.append([own, "true", float(cosine(predicted[str(name)][None], targets[own][None])[0])])
        rows.append([f"  {nearest}", "nearest", similarity])
    return rows
