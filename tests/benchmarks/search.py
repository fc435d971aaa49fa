"""Measure what a search finds in a fifth of the grid's picture passes, and what a trial costs.

The search itself trains the whole grid of layer plans to the end on the demo set, once. It resumes
when it was killed; a finished grid is read. A stopped trial has the epochs that it has in the grid,
since a run is a function of its config. So the package's own rungs and proposals lead ASHA,
one-epoch, TPE and random search through the grid's scores, in many orders, each until its share of
the passes is spent. The spread is that of the best settings trained with other seeds.

Then a few trials of one short epoch, one after the other, are compared with the same model, engine
and rows in a bare process, to see where the seconds of a trial go.

On two cores of an AMD EPYC (Zen 5), 23 plans, 8 epochs of 794 rows, 50 orders; the spread between
seeds is 0.0003 (standard deviation):

    search             mean best    worst    behind    within the spread    of the grid's pictures
    grid, to the end     0.7614                                             100%
    random               0.7611     0.7604   0.0003    46% of the orders     19.6%
    TPE                  0.7610     0.7604   0.0004    40%                   19.6%
    one-epoch            0.7609     0.7609   0.0005     0%                   16.3%
    ASHA                 0.7611     0.7604   0.0003    54%                   19.5%
    TPE, ASHA            0.7612     0.7607   0.0002    68%                   19.6%

With `--reduction 2` TPE with ASHA comes within the spread in 26 % of the orders, with 4 in 72 %.

    seconds of a trial    0.1 its process, 7.4 workers, model, engine and end, 2.3 the epoch
    bare process          0.2 model and engine, 2.3 the epoch; so 7.3 more

    python tests/benchmarks/search.py --out out/search-benchmark
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tyro
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from training_runs import CPU, in_processes, model_of

from img2prompt import cli, presets
from img2prompt.config.search import SearchConfig
from img2prompt.config.train import TrainConfig
from img2prompt.data.shards import ShardRows
from img2prompt.distributed import cluster
from img2prompt.model.towers.build import read_shape
from img2prompt.prepare import features
from img2prompt.prepare import run as prepare
from img2prompt.search import run as search
from img2prompt.search.budget import Budget
from img2prompt.search.propose import ListSearcher, TpeSearcher
from img2prompt.search.results import TRIALS
from img2prompt.search.schedule import SearchScheduler
from img2prompt.search.space import Setting, Space, space_of, trial_name
from img2prompt.train.batches import WorkerRank, total_steps
from img2prompt.train.checkpoint import Position
from img2prompt.train.engines.build import build_engine
from img2prompt.train.job import TrainInputs
from img2prompt.train.loop import Loop
from img2prompt.train.recipe import Recipe

STRATEGIES: dict[str, dict[str, Any]] = {
    "random": {"searcher": "random", "scheduler": "none"},
    "TPE": {"searcher": "tpe", "scheduler": "none"},
    "one-epoch": {"searcher": "random", "scheduler": "one-epoch", "top": 1},
    "ASHA": {"searcher": "random", "scheduler": "asha"},
    "TPE, ASHA": {"searcher": "tpe", "scheduler": "asha"},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The grid, the data and the number of orders."""

    out: str = "out/search-benchmark"
    """Folder of data, heads, grid and trials; finished parts are reused."""
    prompts: int = 500
    """Prompts of the demo set, two pictures each."""
    tower: str = presets.lora_demo().tower.weights
    rates: tuple[float, ...] = (0.0, 0.15, 0.3, 0.45, 0.6)
    """Rates of LoRA and of trained layers."""
    epochs: int = 8
    batch_size: int = 64
    seeds: int = 3
    """Trainings of each of the best three settings, for the spread."""
    share: float = 0.2
    """Share of the grid's picture passes that a search may take."""
    reduction: int = 3
    orders: int = 50
    """Seeds of each search."""
    overhead_trials: int = 3


def grid_of(options: Options) -> SearchConfig:
    return presets.demo_full_search().replace(
        {
            "name": "grid",
            "base.tower.weights": options.tower,
            "probe.tower.weights": options.tower,
            "base.optim.epochs": options.epochs,
            "base.optim.batch_size": options.batch_size,
            "probe.optim.batch_size": options.batch_size,
            "lora_rates": options.rates,
            "nfz_rates": options.rates,
            "head_widths": (0,),
            "searcher": "grid",
            "scheduler": "none",
            "seeds": options.seeds,
            "reduction": options.reduction,
        }
    )


def inputs_of(options: Options) -> TrainInputs:
    """Shards and features of a part of the demo set."""
    config, size = presets.demo_data(), read_shape(grid_of(options).base.tower).size
    changes = {"prompts": options.prompts, "size": size}
    scenes = [source.replace(changes) for source in config.sources]
    config = dataclasses.replace(config.replace({"shard.size": size}), sources=tuple(scenes))
    shards = prepare.run(config, options.out).shards
    embed = presets.demo_features().replace({"tower.weights": options.tower})
    return TrainInputs(shards, features.run(embed, shards, f"{options.out}/features"))


def rows_of(searched: Any) -> list[dict[str, Any]]:
    return json.loads(Path(searched.path(TRIALS)).read_text())


def spread_of(rows: list[dict[str, Any]]) -> float:
    """Return the standard deviation between seeds, pooled over settings that have several."""
    alike: dict[str, list[float]] = {}
    for row in rows:
        alike.setdefault(json.dumps(row["setting"]), []).append(row["best"])
    groups = [scores for scores in alike.values() if len(scores) > 1]
    return float(np.sqrt(np.mean([np.var(scores, ddof=1) for scores in groups])))


Curves = Mapping[str, list[float]]
"""Validation cosine after each epoch, by trial."""


@dataclass
class Follower:
    """Lead a search through known scores until its epochs are spent."""

    config: SearchConfig
    space: Space
    curves: Curves
    epochs_left: int
    best: float = -1.0
    _seen: dict[str, float] = field(default_factory=dict)

    def run(self) -> float:
        """Return the best score that the search sees."""
        names = {setting: trial_name(setting) for setting in self.space.settings}
        scheduler = SearchScheduler(self.config, Budget(0), dict.fromkeys(names.values(), 1.0), {})
        proposals, first = self._proposals(names), {}
        for number in range(len(names)):
            proposal = proposals.suggest(str(number))
            if proposal == Searcher.FINISHED or not self.epochs_left:
                break
            first[proposal["name"]] = self._train(proposal["name"], scheduler, str(number))
            proposals.on_trial_complete(str(number), {})
        if self.config.scheduler == "one-epoch":
            for name in sorted(first, key=lambda name: -first[name])[: self.config.top]:
                self._see(self.curves[name][1:])
        return self.best

    def _proposals(self, names: Mapping[Setting, str]) -> ListSearcher:
        if self.config.searcher == "tpe":
            return TpeSearcher(
                {},
                Budget(0),
                self.space,
                {},
                trials=len(names),
                seed=self.config.seed,
                names=names,
                best_of=self._seen.__getitem__,
            )
        order = np.random.default_rng(self.config.seed).permutation(len(names))
        if self.config.scheduler == "one-epoch":
            rest = self.config.top * (self.config.base.optim.epochs - 1)
            order = order[: self.epochs_left - rest]
        settings = [self.space.settings[number] for number in order]
        return ListSearcher({names[setting]: setting for setting in settings}, Budget(0))

    def _train(self, name: str, scheduler: SearchScheduler, number: str) -> float:
        trial: Any = SimpleNamespace(trial_id=number, config={"name": name})
        runner: Any = None
        scheduler.on_trial_add(runner, trial)
        last = 1 if self.config.scheduler == "one-epoch" else len(self.curves[name])
        for epoch, score in enumerate(self.curves[name][:last], start=1):
            self._seen[name] = max(self._seen.get(name, -1.0), score)
            row = {"epoch": epoch, "val_cosine": score}
            if not self._see([score]):
                break
            if scheduler.on_trial_result(runner, trial, row) == TrialScheduler.STOP:
                break
        return self._seen[name]

    def _see(self, scores: list[float]) -> bool:
        """Spend an epoch for each score; return whether any are left."""
        for score in scores[: self.epochs_left]:
            self.best, self.epochs_left = max(self.best, score), self.epochs_left - 1
        return self.epochs_left > 0


def compare(options: Options, config: SearchConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print and return what each strategy finds in a share of the grid's epochs, in many orders."""
    grid = [row for row in rows if row["seed"] == config.base.seed]
    curves = {row["name"]: [epoch["val_cosine"] for epoch in row["epochs"]] for row in grid}
    space = space_of(config, read_shape(config.base.tower).depth)
    whole, spread = sum(map(len, curves.values())), spread_of(rows)
    budget, best = int(options.share * whole), max(row["best"] for row in grid)
    a_pass = grid[0]["rows"] / len(grid[0]["epochs"])
    table = [["grid, to the end", best, "", 0.0, "", int(whole * a_pass), "100%"]]
    results = {"grid": best, "spread": spread, "budget": budget / whole}
    for name, changes in STRATEGIES.items():
        followers = [
            Follower(config.replace({**changes, "seed": seed}), space, curves, budget)
            for seed in range(options.orders)
        ]
        scores = np.array([follower.run() for follower in followers])
        spent = np.mean([budget - follower.epochs_left for follower in followers])
        reached = float(np.mean(scores >= best - spread))
        results[name] = {"scores": scores, "epochs": spent, "reached": reached}
        line = [name, scores.mean(), scores.min(), best - scores.mean(), f"{reached:.0%}"]
        table.append([*line, int(spent * a_pass), f"{spent / whole:.1%}"])
    columns = ["search", "best val cosine", "worst order", "behind", "within the spread"]
    title = f"{len(curves)} plans, {options.epochs} epochs; spread between seeds {spread:.4f}"
    cli.show(f"{title}; {options.orders} orders", [*columns, "pictures", "of the grid"], table)
    return results


def overhead(options: Options, inputs: TrainInputs) -> dict[str, float]:
    """Print and return where a trial's seconds go, beside those of a bare process."""
    config = grid_of(options).replace(
        {
            "name": "overhead",
            "base.start_from": "",
            "base.optim.epochs": 1,
            "lora_rates": options.rates[: options.overhead_trials],
            "nfz_rates": options.rates[1:2],
            "concurrent": 1,
            "seeds": 1,
        }
    )
    searched = search.run(config, inputs, options.out)
    folder = Path(searched.uri)
    trials = sorted((folder / "trials").iterdir(), key=lambda trial: _written(trial, "manifest"))
    parts = []
    for before, trial in itertools.pairwise(trials):
        begun, end = _written(trial, "config"), _written(trial, "manifest")
        lines = (trial / "metrics.jsonl").read_text().splitlines()
        loop = 3600 * json.loads(lines[-1])["worker_hours"]
        parts.append((begun - _written(before, "manifest"), end - begun - loop, loop))
    named = ("a trial's process", "workers, model, engine, end", "epoch")
    seconds = dict(zip(named, np.mean(parts, axis=0).tolist(), strict=True))
    trained = TrainConfig.from_json((trials[-1] / "config.json").read_text())
    (bare,) = in_processes(bare_run, 1, trained, inputs)
    table = [[name, f"{value:.1f}"] for name, value in seconds.items()]
    table += [[f"bare process: {name}", f"{value:.1f}"] for name, value in bare.items()]
    extra = sum(seconds.values()) - sum(bare.values())
    cli.show("seconds of a trial", ["part", "s"], [*table, ["more than bare", f"{extra:.1f}"]])
    return seconds | {f"bare: {name}": value for name, value in bare.items()}


def _written(folder: Path, name: str) -> float:
    return (folder / f"{name}.json").stat().st_mtime


def bare_run(place: WorkerRank, config: TrainConfig, inputs: TrainInputs) -> dict[str, float]:
    """Return the seconds of the same loop and engine in a process that has imported everything."""
    began = time.perf_counter()
    rows, val = ShardRows(inputs.shards, "train"), ShardRows(inputs.shards, "val")
    model = model_of(config)
    engine = build_engine(model, config, total_steps(config, len(rows)), CPU)
    ready = time.perf_counter()
    kept: list[Any] = []
    loop = Loop(
        config=config,
        engine=engine,
        recipe=Recipe(),
        train=rows,
        val=val,
        worker=place,
        save=lambda _: kept.append(engine.state()),
        report=kept.append,
    )
    loop.run(Position())
    return {"model and engine": ready - began, "epoch": time.perf_counter() - ready}


def run(options: Options) -> tuple[dict[str, Any], dict[str, float]]:
    options = dataclasses.replace(options, out=str(Path(options.out).absolute()))
    with cluster.connect(dashboard=True):
        inputs, config = inputs_of(options), grid_of(options)
        results = compare(options, config, rows_of(search.run(config, inputs, options.out)))
        return results, overhead(options, inputs)


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
