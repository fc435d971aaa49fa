"""The demo pipeline: every stage in turn, from raw pictures to scores and readable prompts."""

import csv
import dataclasses
import io
from dataclasses import dataclass

import pyarrow as pa

from img2prompt.artifact import METRICS, Artifact
from img2prompt.config.chain import ChainConfig
from img2prompt.config.predict import PredictConfig
from img2prompt.data.shards import read_rows, spaced_rows
from img2prompt.data.vectors import matrix
from img2prompt.predict import evaluate, predict
from img2prompt.predict.metrics import cosine
from img2prompt.predict.pictures import list_pictures
from img2prompt.predictors.trained import TrainedRun
from img2prompt.prepare import features
from img2prompt.prepare import run as prepare
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.storage import delete_folder, join, read_bytes, write_bytes
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import Workspace


@dataclass(frozen=True)
class ChainResult:
    """Results of a chain."""

    prepared: PreparedData
    evaluation: Artifact
    predictions: Artifact


def check(config: ChainConfig, out: str) -> None:
    """Check names and inputs before a cluster starts and a model trains.

    Raises:
        UserError: a name is not allowed, or pictures are missing.
    """
    workspace = Workspace(out)
    workspace.run(config.probe.name)
    workspace.run(config.finetune.name)
    workspace.evaluation(config.evaluate.name)
    workspace.predictions(_predict_config(config).name)
    prepare.check(config.prepare, out)
    if config.predict.pictures:
        list_pictures(config.predict.pictures)


def run(config: ChainConfig, out: str) -> ChainResult:
    """Run the stages that are not finished under `out`.

    The config and the scores are saved in `out` itself, the config when no stage refused it.
    """
    workspace = Workspace(out)
    prepared = prepare.run(config.prepare, out)
    embedded = features.run(config.features, prepared.shards, workspace.features)
    inputs = TrainInputs(prepared.shards, embedded, groups=prepared.groups)
    probe = train.run(config.probe, inputs, workspace.run(config.probe.name))
    start = probe if config.finetune.start_from else None
    inputs = TrainInputs(prepared.shards, start=start, targets=prepared.targets)
    tuned = train.run(config.finetune, inputs, workspace.run(config.finetune.name))
    runs = [
        TrainedRun(probe, name=config.probe.name),
        TrainedRun(tuned, name=config.finetune.name),
    ]
    scoring = dataclasses.replace(config.evaluate, runs=tuple(run.name for run in runs))
    folder = workspace.evaluation(config.evaluate.name)
    evaluation = evaluate.run(scoring, prepared, embedded, runs, folder)
    write_bytes(workspace.metrics, read_bytes(evaluation.path(METRICS)))
    predicting = _predict_config(config)
    if not predicting.pictures:
        folder = _write_samples(prepared, config.samples, workspace.samples)
        predicting = dataclasses.replace(predicting, pictures=folder)
    folder = workspace.predictions(predicting.name)
    predictions = predict.run(predicting, runs[-1], prepared, folder)
    write_bytes(workspace.config, config.to_json().encode())
    return ChainResult(prepared, evaluation, predictions)


def _predict_config(config: ChainConfig) -> PredictConfig:
    """Return the config of the prediction by the fine-tuned run.

    Predictions of samples have a folder of their own.
    """
    name = config.predict.name if config.predict.pictures else f"samples-{config.predict.name}"
    return dataclasses.replace(config.predict, run=config.finetune.name, name=name)


def _write_samples(prepared: PreparedData, count: int, folder: str) -> str:
    """Write pictures from all over the test split as files, with their prompts in `prompts.csv`.

    Files are numbered, because an id may contain characters that no file name may.
    """
    delete_folder(folder)
    rows = _some_rows(prepared.shards, count)
    texts = prepared.targets.read_tables("rows", ["prompt_id", "prompt"])
    prompt = dict(zip(texts["prompt_id"].to_pylist(), texts["prompt"].to_pylist(), strict=True))
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["picture", "id", "prompt"])
    ending = "png" if prepared.shards.config["encoding"] == "png" else "jpg"
    for number, row in enumerate(rows.to_pylist()):
        name = f"{number:05d}.{ending}"
        write_bytes(join(folder, name), row["image"])
        writer.writerow([name, row["id"], prompt[row["prompt_id"]]])
    write_bytes(join(folder, "prompts.csv"), sink.getvalue().encode())
    return folder


def _some_rows(shards: Artifact, count: int) -> pa.Table:
    """Read evenly spaced test rows."""
    names = shards.names("test/")
    rows = spaced_rows([shards.files[name].rows for name in names], count)
    columns = ["id", "prompt_id", "image"]
    return pa.concat_tables(
        read_rows(shards.path(names[file]), row, row + 1, columns) for file, row in rows
    )


def samples_summary(chain: ChainResult, folder: str) -> list[list[object]]:
    """Return the rows of a table: each sample's own prompt, then its best readable one.

    Both have their cosine to the predicted vector.
    """
    listed = csv.DictReader(io.StringIO(read_bytes(join(folder, "prompts.csv")).decode()))
    prompts = {row["picture"]: row["prompt"] for row in listed}
    vectors = chain.predictions.read_tables("vectors-")
    predicted = dict(zip(vectors["id"].to_pylist(), matrix(vectors["vector"]), strict=True))
    texts = chain.prepared.targets.read_tables("rows", ["prompt", "target"])
    targets = dict(zip(texts["prompt"].to_pylist(), matrix(texts["target"]), strict=True))
    kind = "composed" if "composed" in chain.predictions.config["texts"] else "nearest"
    rows: list[list[object]] = []
    for name, text, similarity in predict.summary(chain.predictions, limit=len(prompts)):
        own = prompts[str(name)]
        rows.append([own, "true", float(cosine(predicted[str(name)][None], targets[own][None])[0])])
        rows.append([f"  {text}", kind, similarity])
    return rows
