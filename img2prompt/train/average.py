"""Finished runs -> one run of averaged weights, in the form of any run.

runs/<name>/ of each member, and shards/ or features/ -> runs/<name>/ with `model.safetensors` and
`average.json` (the members and their validation cosines). It works in this process: it runs models
on the validation pictures and trains nothing. A killed one starts over.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch

from img2prompt.artifact import Artifact, read_manifest
from img2prompt.config.average import AverageConfig
from img2prompt.config.base import differences
from img2prompt.config.train import TrainConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.mix import Weights, check_mixable, interpolate, mean_of
from img2prompt.model.prompt_model import (
    WEIGHTS,
    learned_state,
    load_learned_state,
    read_learned_state,
)
from img2prompt.model.tensor_checks import require_finite_weights
from img2prompt.storage import read_bytes
from img2prompt.train.batches import WorkerRank
from img2prompt.train.checkpoint import SCORE
from img2prompt.train.engines.plain import PlainEngine
from img2prompt.train.job import TrainInputs, build_model, open_rows
from img2prompt.train.validation import Candidate, validate
from img2prompt.workspace import Stage

logger = logging.getLogger(__name__)

AVERAGE = "average.json"
SUMMARY = ("run", "val cosine", "share or use")
ALONE = WorkerRank()


@dataclass(frozen=True)
class MemberRun:
    """A finished run to average."""

    name: str
    run: Artifact

    @property
    def config(self) -> TrainConfig:
        return TrainConfig.from_json(json.dumps(self.run.config), where=self.run.uri)

    def weights(self) -> Weights:
        return Weights(read_learned_state(self.run), self.config.plan)


@dataclass(frozen=True)
class Scorer:
    """Scores weights by their mean cosine on the validation pictures."""

    config: TrainConfig
    inputs: TrainInputs
    batch_size: int

    def score(self, weights: Weights) -> float:
        """Return the mean cosine of a model with these weights."""
        config = self.config.replace({"plan": asdict(weights.plan)})
        inputs = TrainInputs(self.inputs.shards, self.inputs.features)
        model = build_model(config, inputs)
        load_learned_state(model, dict(weights.state), config.name)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        candidate = Candidate(PlainEngine(model, config, 1, device))
        return validate([candidate], open_rows(config, inputs, "val"), ALONE, self.batch_size)[0]


@dataclass(frozen=True)
class Averaged:
    """Averaged weights, their score, and a row of SUMMARY for each model that was compared."""

    weights: Weights
    score: float
    compared: list[list[Any]]


def run(
    config: AverageConfig, runs: Mapping[str, Artifact], inputs: TrainInputs, out: str
) -> Artifact:
    """Average the runs and publish the result, with its validation cosine.

    `runs` are those of the config, by name. `inputs.start` is the run that the member of `wise-ft`
    started from.

    Raises:
        UserError: the runs are not of one model and data set, or cannot be averaged.
    """
    made_from = _fingerprints(config, runs, inputs)
    if finished := _finished(out, made_from):
        return finished
    began = time.perf_counter()
    members = [MemberRun(name, artifact) for name, artifact in runs.items()]
    _check(members, inputs)
    scorer = Scorer(members[0].config, inputs, config.batch_size)
    if config.how == "soup":
        averaged = greedy_soup(members, scorer)
    else:
        averaged = wise_ft(members[0], config.alpha, inputs, scorer)
    changes = {"name": config.name, "plan": asdict(averaged.weights.plan)}
    state = dict(averaged.weights.state)
    require_finite_weights(state, f"the average of {', '.join(runs)}")
    draft = Draft.open(out, Stage.TRAIN, members[0].config.replace(changes), made_from)
    draft.write_bytes(WEIGHTS, safetensors.torch.save(state))
    report = {"config": config.to_dict(), "columns": SUMMARY, "compared": averaged.compared}
    draft.write_bytes(AVERAGE, json.dumps(report, indent=2).encode())
    seconds = time.perf_counter() - began
    return draft.publish(**{SCORE: averaged.score, "seconds": seconds})


def summary(average: Artifact) -> list[list[Any]]:
    """Return the rows of SUMMARY: the runs that were compared, and the average itself."""
    report = json.loads(read_bytes(average.path(AVERAGE)))
    return [*report["compared"], [report["config"]["name"], average.counts[SCORE], ""]]


def greedy_soup(members: Sequence[MemberRun], scorer: Scorer) -> Averaged:
    """Add runs to the mean, the best first, and leave out each that lowers its score.

    The mean is never worse than the best run on the pictures of `scorer`. This is recipe 1 of arXiv
    2203.05482.
    """
    scores = [scorer.score(member.weights()) for member in members]
    order = sorted(range(len(members)), key=lambda number: -scores[number])
    best, used = scores[order[0]], [members[order[0]]]
    for number in order[1:]:
        score = scorer.score(mean_of([member.weights() for member in [*used, members[number]]]))
        logger.info("soup of %d with %s: %.4f", len(used) + 1, members[number].name, score)
        if score >= best:
            best, used = score, [*used, members[number]]
    rows = [
        [member.name, score, "yes" if member in used else "no"]
        for member, score in zip(members, scores, strict=True)
    ]
    return Averaged(mean_of([member.weights() for member in used]), best, rows)


def wise_ft(tuned: MemberRun, alpha: float, inputs: TrainInputs, scorer: Scorer) -> Averaged:
    """Interpolate a fine-tune with the model that it started from (arXiv 2109.01903)."""
    if inputs.start is None:
        raise UserError(
            f"{tuned.name} started from no run, so its base has no head that answers: wise-ft "
            "needs a run with start_from"
        )
    tuned.run.require_input("start", inputs.start)
    base, weights = learned_state(build_model(tuned.config, inputs)), tuned.weights()
    mixed = interpolate(base, weights, alpha)
    parts = ("base", 0.0, f"{1 - alpha:g}"), (tuned.name, 1.0, f"{alpha:g}")
    rows = [[name, scorer.score(interpolate(base, weights, a)), share] for name, a, share in parts]
    return Averaged(mixed, scorer.score(mixed), rows)


def _fingerprints(
    config: AverageConfig, runs: Mapping[str, Artifact], inputs: TrainInputs
) -> dict[str, str]:
    """Return the inputs of the result: those of the runs, the runs, and the settings."""
    settings = {"average": config.fingerprint(), "shards": inputs.shards.fingerprint}
    first = next(iter(runs.values()))
    members = {f"run {name}": run.fingerprint for name, run in runs.items()}
    return settings | {"tower": first.inputs["tower"]} | members


def _finished(out: str, made_from: Mapping[str, str]) -> Artifact | None:
    """Return the result of an earlier start; one with other inputs is a UserError."""
    manifest = read_manifest(out)
    if manifest is None or not manifest["done"]:
        return None
    if changes := differences(manifest["inputs"], dict(made_from), "inputs"):
        lines = "".join(f"\n  {change}" for change in changes)
        raise UserError(f"{out} holds another run. It differs in:{lines}\nGive another --name")
    return Artifact.load(out, Stage.TRAIN)


def _check(members: Sequence[MemberRun], inputs: TrainInputs) -> None:
    """Raise a UserError for runs whose weights have no mean."""
    first, shapes = members[0], _shapes(members[0])
    for member in members:
        member.run.require_input("shards", inputs.shards)
        check_mixable(member.name, member.weights())
        if member.run.inputs["tower"] != first.run.inputs["tower"]:
            raise UserError(f"{member.name} and {first.name} have different towers")
        if unlike := sorted(shapes.items() ^ _shapes(member).items()):
            raise UserError(
                f"{member.name} and {first.name} learned other tensors, such as {unlike[0][0]}: "
                "average runs of one layer plan and head"
            )


def _shapes(member: MemberRun) -> dict[str, tuple[int, ...]]:
    """Return the shapes of learned tensors by name, less those that depend on LoRA's rank."""
    state = member.weights().state
    return {name: () if "lora_" in name else tuple(t.shape) for name, t in state.items()}
