"""Raw pictures and prompts -> shards: the driver of the five stages that make a data set."""

from collections.abc import Mapping
from typing import Any

from img2prompt.artifact import MANIFEST
from img2prompt.config.prepare import PrepareConfig, TargetsConfig
from img2prompt.model.text import check_model
from img2prompt.prepare import clean, group, index, shard, targets
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.storage import exists, join, write_bytes
from img2prompt.workspace import Workspace


def check(config: PrepareConfig, out: str) -> None:
    """Check the inputs before a cluster starts and pictures are listed, which may take hours.

    Raises:
        UserError: a source, the blocked words or the prompt encoder is missing.
    """
    index.check(config)
    clean.check(config.clean)
    if not exists(join(Workspace(out).targets, MANIFEST)):
        check_model(config.encoder)


def run(config: PrepareConfig, out: str) -> PreparedData:
    """Run the stages that are not finished under `out`; save the config as `prepare.json`."""
    workspace = Workspace(out)
    listed = index.run(config, workspace.index)
    cleaned = clean.run(config.clean, listed, workspace.clean, config.encoder)
    encoded = targets.run(TargetsConfig(encoder=config.encoder), cleaned, workspace.targets)
    grouped = group.run(config.group, encoded, workspace.groups)
    shards = shard.run(
        config.shard, config.clean, listed, cleaned, encoded, grouped, workspace.shards
    )
    write_bytes(workspace.prepare_config, config.to_json().encode())
    return PreparedData(listed, cleaned, encoded, grouped, shards)


def summary(prepared: PreparedData) -> list[list[object]]:
    """Return the rows of a table: rows that each stage kept and rejected."""
    index_counts, clean_counts = prepared.index.counts, prepared.clean.counts
    group_counts, shard_counts = prepared.groups.counts, prepared.shards.counts
    near = clean_counts["rows"] - sum(group_counts["pictures_by_split"].values())
    dropped = f"{group_counts['dropped']} near duplicates dropped, with {near} pictures"
    return [
        ["pictures listed", index_counts["rows"], _rejected(index_counts)],
        ["pictures clean", clean_counts["rows"], _rejected(clean_counts)],
        ["distinct prompts", prepared.targets.counts["prompts"], ""],
        ["prompts kept", group_counts["kept"], dropped],
        ["similarity groups", group_counts["groups"], f"largest {group_counts['largest_group']}"],
        ["train pictures", shard_counts["train"], ""],
        ["validation pictures", shard_counts["val"], _leak(group_counts["train_to_val"])],
        ["test pictures", shard_counts["test"], _leak(group_counts["train_to_test"])],
        ["pictures left out", sum(shard_counts["rejected"].values()), _rejected(shard_counts)],
        ["rejected rows", _all_rejected(prepared), "reasons in {index,clean,shards}/rejected*"],
    ]


def _rejected(counts: Mapping[str, Any]) -> str:
    reasons = counts["rejected"]
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items()) or "none rejected"


def _all_rejected(prepared: PreparedData) -> int:
    stages = prepared.index, prepared.clean, prepared.shards
    return sum(sum(stage.counts["rejected"].values()) for stage in stages)


def _leak(cosine: float) -> str:
    return f"largest cosine to a training prompt {cosine:.3f}"
