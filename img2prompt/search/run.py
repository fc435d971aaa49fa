"""Driver of a search: from its config and inputs to the published result."""

import functools
import json
from typing import Any

from img2prompt.artifact import Artifact
from img2prompt.config.search import SearchConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.towers.build import open_tower, read_shape
from img2prompt.report.search.page import page
from img2prompt.search import capacity, prices
from img2prompt.search.budget import Budget
from img2prompt.search.heads import best_heads
from img2prompt.search.results import BEST, REPORT, SPACE, TRIALS, ranked
from img2prompt.search.rounds import SearchRounds
from img2prompt.search.space import Setting, choose, space_of, trial_config
from img2prompt.search.trials import METRIC
from img2prompt.search.watch import SearchWatch, show_report
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import SearchFolder, Stage, Workspace

FREE = ("concurrent", "max_hours", "peak_tflops", "mfu")
"""Settings that may change when a search is resumed: they do not affect the result of a trial."""


def run(config: SearchConfig, inputs: TrainInputs, out: str) -> Artifact:
    """Search under `out`/<name>; the heads of the first level go to `out`/runs/<name>-heads.

    A search that has ended because `max_hours` was reached resumes when it is run with more.

    Raises:
        UserError: no setting trains a layer or fits the memory, the cluster is too small for one
            trial, or every trial failed.
    """
    folder = Workspace(out).search(config.name)
    shape = read_shape(config.base.tower)
    space = space_of(config, shape.depth)
    price = functools.partial(prices.price, shape=shape, counts=inputs.shards.counts)
    costs = {setting: price(trial_config(config, setting)) for setting in space.settings}
    fitting, left_out = prices.within_memory(config, costs)
    check = functools.partial(capacity.require_room, config)
    fingerprints = _fingerprints(config, inputs)
    draft = Draft.open(folder, Stage.SEARCH, config, fingerprints, check, free=FREE)
    if finished := draft.finished():
        if not _may_resume(config, finished):
            return finished
        draft.reopen()
    space, costs = space.only(fitting), {setting: costs[setting] for setting in fitting}
    runs = prices.runs_in(SearchFolder(folder).trials) + prices.runs_in(Workspace(out).runs)
    rate = prices.rate_of(config, shape, inputs.shards.counts, runs)
    report = prices.report(config, space, costs, left_out, rate)
    show_report(report)
    draft.write_bytes(SPACE, json.dumps(report, indent=2).encode())
    starts = best_heads(config, (setting.head_width for setting in fitting), inputs, out)
    if starts:
        space = space.only([setting for setting in fitting if setting.head_width in starts])
        costs = {setting: costs[setting] for setting in space.settings}
    budget = Budget(config.max_hours)
    watch = SearchWatch(config.name, budget, prices.total_flop(config, costs))
    search = SearchRounds(config, inputs, folder, shape, space, costs, starts, budget, watch)
    search.run(choose(config, space))
    return _publish(config, draft, search)


def _fingerprints(config: SearchConfig, inputs: TrainInputs) -> dict[str, str]:
    tower = open_tower(config.base.tower, config.base.seed).base_fingerprint
    prints = {"tower": tower, "shards": inputs.shards.fingerprint}
    return prints | ({"features": inputs.features.fingerprint} if inputs.features else {})


def _may_resume(config: SearchConfig, finished: Artifact) -> bool:
    """Return True if a search ended because `max_hours` was reached, and has more hours now."""
    counts = finished.counts
    return counts["limited"] and not 0 < config.max_hours <= counts["device_hours"]


def _publish(config: SearchConfig, draft: Draft, search: SearchRounds) -> Artifact:
    rows = ranked(search.rows())
    if not rows or rows[0]["best"] is None:
        raise UserError(_no_result_message(config, draft.uri, rows))
    repeat = rows[0]["seed"] - config.base.seed
    setting = Setting.from_dict(rows[0]["setting"])
    best = search.trial(setting, repeat=repeat).job.config.replace({"name": "best"})
    draft.write_bytes(BEST, best.to_json().encode())
    draft.write_bytes(TRIALS, json.dumps(rows, indent=2).encode())
    draft.write_bytes(REPORT, page(rows).encode())
    ends = [row["end"] for row in rows]
    return draft.publish(
        trials=len(rows),
        **{end: ends.count(end) for end in ("finished", "stopped", "failed")},
        best=rows[0]["name"],
        device_hours=search.budget.hours,
        limited=search.limited,
        **{METRIC: rows[0]["best"]},
    )


def _no_result_message(config: SearchConfig, folder: str, rows: list[dict[str, Any]]) -> str:
    if any(row["end"] == "failed" for row in rows):
        reasons = "\n".join(f"  {row['name']}: {row['reason']}" for row in rows)
        return f"every trial of {folder} failed; run it again to retry them:\n{reasons}"
    return (
        f"max_hours is {config.max_hours:g}, and no trial of {folder} has finished an epoch within "
        "it; run the search again with more, and it resumes"
    )
