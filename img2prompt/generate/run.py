"""Prompts -> generated/: pictures in `pictures/`, a source for `prepare`.

Also `prompts.parquet` (the prompts that get pictures), `rejected/` (prompts and pictures with the
reasons), `reports/` (time and size of each shard) and `contact_sheet.html`. A killed run resumes
with the shards that have no report.
"""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict

from img2prompt.artifact import Artifact, Receipt, digest_of
from img2prompt.config.generate import GenerateConfig
from img2prompt.data.sources.files import content_digest
from img2prompt.data.sources.rows import Rejected, count_kinds, rejected_table
from img2prompt.data.text.rules import read_blocked
from img2prompt.distributed import metrics
from img2prompt.distributed.progress import Progress
from img2prompt.draft import READERS, Draft
from img2prompt.errors import UserError
from img2prompt.generate.actors import ShardJob, actors, make_shards, measured_rate, with_dtype
from img2prompt.generate.checkpoint import check_installed, checkpoint_digest, find_checkpoint
from img2prompt.generate.estimate import Rate, Usage, describe, expected
from img2prompt.generate.plan import Plan
from img2prompt.generate.prompts import check_prompts, choose_prompts
from img2prompt.generate.shards import PICTURES, REJECTED, REPORTS, ShardReport, report_name
from img2prompt.generate.sheet import write_sheet
from img2prompt.storage import join, read_bytes
from img2prompt.workspace import GeneratedFolder, Stage

logger = logging.getLogger(__name__)

FREE = ("prompts", "weights", "download", "workers", "max_hours", "max_gigabytes", "sheet")
"""Settings that do not change the pictures: prompts and weights count by the content of their
files. A stopped run may resume with others."""

PROMPTS = "prompts.parquet"
UNFIT = f"{REJECTED}prompts.parquet"
RATE = "rate.json"
PROMPTS_PER_GROUP = 4096
MEASURED_FROM = 8
"""Batches from which on a run measures its rate first, for which a pipeline is loaded once more."""


def check(config: GenerateConfig) -> None:
    """Check packages and inputs before a cluster starts.

    Raises:
        UserError: diffusers, the prompts, the blocked words or the checkpoint are missing.
    """
    check_installed()
    check_prompts(config.prompts)
    read_blocked(config.clean.blocked_words)
    find_checkpoint(config)


def run(config: GenerateConfig, out: str) -> Artifact:
    """Make all pictures; counts `prompts`, `pictures`, `rejected` by kind, and `device_hours`.

    Raises:
        UserError: an input cannot be used, a limit is or would be exceeded, the cluster is too
            small, or no picture can be used.
    """
    check(config)
    config = with_dtype(config)
    weights = checkpoint_digest(find_checkpoint(config), config.variant)
    inputs = {"prompts": content_digest(config.prompts), "weights": weights}
    if blocked := read_blocked(config.clean.blocked_words):
        inputs["blocked_words"] = digest_of(blocked)
    draft = Draft.open(out, Stage.GENERATED, config, inputs, lambda: _check(config), free=FREE)
    if finished := draft.finished():
        return finished
    plan = Plan.of(config, _prompts(config, draft))
    used = _make_missing(ShardJob(draft, config, plan, join(draft.uri, PROMPTS)))
    write_sheet(draft, config.sheet)
    return _publish(draft, plan.prompts, used)


def _check(config: GenerateConfig) -> None:
    actors(config, shards=1)


def _prompts(config: GenerateConfig, draft: Draft) -> int:
    """Write the prompts that get pictures, unless they are written; return their number."""
    receipt = draft.receipts().get(PROMPTS)
    if receipt is None:
        prompts, unfit = choose_prompts(config)
        draft.write_table(UNFIT, rejected_table(unfit))
        receipt = draft.write_table(PROMPTS, prompts, PROMPTS_PER_GROUP)
    return receipt.rows


def _make_missing(job: ShardJob) -> Usage:
    """Make the shards that have no report, within the limits; return what all shards took."""
    config, plan, receipts = job.config, job.plan, job.draft.receipts()
    missing = [shard for shard in range(plan.shards) if report_name(shard) not in receipts]
    used = _used(job.draft, receipts)
    pictures = sum(map(plan.size, missing))
    if missing and pictures >= MEASURED_FROM * config.pipeline.batch_size:
        _announce(job, receipts, pictures, used)
    progress = Progress("generate", pictures, "pictures")
    with closing(make_shards(job, missing)) as reports:
        for report in reports:
            progress.add(report.pictures + report.rejected)
            used += report.usage
            if excess := used.excess(config):
                raise UserError(
                    f"{job.draft.uri} stopped at {excess}. The same command with a higher limit "
                    f"resumes; finished pictures are in {GeneratedFolder(job.draft.uri).pictures}"
                )
    return used


def _used(draft: Draft, receipts: Mapping[str, Receipt]) -> Usage:
    """Return what the finished shards took. An object store answers slowly: threads read them."""

    def read(name: str) -> Usage:
        return ShardReport(**json.loads(read_bytes(join(draft.uri, name)))).usage

    names = [name for name in receipts if name.startswith(REPORTS)]
    with ThreadPoolExecutor(READERS) as pool:
        return sum(pool.map(read, names), Usage())


def _announce(job: ShardJob, receipts: Mapping[str, Receipt], pictures: int, used: Usage) -> None:
    """Log what the run will take; refuse it (UserError) if that exceeds a limit."""
    if RATE in receipts:
        rate = Rate(**json.loads(read_bytes(join(job.draft.uri, RATE))))
    else:
        rate = measured_rate(job)
        job.draft.write_bytes(RATE, json.dumps(asdict(rate)).encode(), rows=0)
    logger.info("generate: %s", describe(rate, pictures, actors(job.config, job.plan.shards)))
    if excess := (used + expected(rate, pictures)).excess(job.config):
        raise UserError(
            f"{pictures:,} pictures would take {excess}: raise the limit, or make fewer or "
            "cheaper pictures (--pictures-per-prompt, --sampling.steps, a shorter list of prompts)"
        )


def _publish(draft: Draft, prompts: int, used: Usage) -> Artifact:
    receipts = draft.receipts()
    names = [name for name in receipts if name.startswith(REJECTED) and receipts[name].rows]
    rejected = [Rejected(**row) for name in names for row in draft.read_table(name).to_pylist()]
    pictures = sum(r.rows for name, r in receipts.items() if name.startswith(PICTURES))
    kinds = count_kinds(rejected)
    metrics.count_rejected(Stage.GENERATED, kinds)
    if not pictures:
        raise UserError(
            f"no picture can be used: {kinds}; the reasons are in {join(draft.uri, REJECTED)}. "
            f"Change the settings and delete {draft.uri}"
        )
    hours = round(used.hours, 4)
    return draft.publish(prompts=prompts, pictures=pictures, rejected=kinds, device_hours=hours)


def summary(generated: Artifact) -> list[list[object]]:
    """Return the rows of a table: counts, and rejected rows by kind."""
    counts = generated.counts
    rows: list[list[object]] = [
        ["prompts", counts["prompts"]],
        ["pictures", counts["pictures"]],
        ["device-hours", counts["device_hours"]],
    ]
    return rows + [[f"rejected: {kind}", number] for kind, number in counts["rejected"].items()]
