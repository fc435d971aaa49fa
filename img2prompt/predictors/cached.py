"""Cached features and the frozen tower that made them."""

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from img2prompt.artifact import Artifact
from img2prompt.config.tower import TowerConfig
from img2prompt.data.vectors import matrix
from img2prompt.errors import UserError
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.build import open_tower


def has_views(features: Artifact, views: tuple[str, ...]) -> bool:
    """Return True when the tower has seen each picture in all these views."""
    return set(views) <= set(features.config["views"])


def read_view(features: Artifact, split: str, view: str) -> tuple[list[str], np.ndarray]:
    """Return the ids (N,) of a split's pictures and their features float16 (N, D) in one view.

    The rows are in the order of the shards.
    """
    parts = list(read_files(features, split, view))
    assert parts, f"{features.uri} has no rows of {split} in the view {view!r}"
    ids = list(itertools.chain.from_iterable(own for own, _ in parts))
    return ids, np.concatenate([rows for _, rows in parts])


def read_files(features: Artifact, split: str, view: str) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield what `read_view` returns file by file, for splits that may not fit in memory."""
    for name in features.names(f"{split}/"):
        table = features.read_table(name)
        table = table.filter(pc.field("view") == view)
        if len(table):
            yield table["id"].to_pylist(), matrix(table["feature"])


def load_frozen_tower(features: Artifact) -> Tower:
    """Load the tower that made the features; another checkpoint is a UserError."""
    config = TowerConfig.from_json(json.dumps(features.config["tower"]), where=features.uri)
    tower = open_tower(config)
    if tower.base_fingerprint != features.inputs["tower"]:
        raise UserError(
            f"{features.uri} was made by a tower with fingerprint {features.inputs['tower']}, but "
            f"{config.weights!r} now has {tower.base_fingerprint}: restore that checkpoint, or "
            "make the features again"
        )
    return tower
