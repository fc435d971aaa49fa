"""Predictors in an actor: their answers as columns of Ray Data, and read back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from img2prompt.data.vectors import to_matrix
from img2prompt.model.views import VIEWS
from img2prompt.predictors.base import Answers, PredictorSpec, average_views


class AnswerColumns:
    """Predictors of pictures that are loaded in one process and see each batch in turn.

    Calls take pixels uint8 (B, S, S, 3) and return each predictor's answers, averaged over views,
    in columns that `read_answers` reads.
    """

    def __init__(
        self, specs: Sequence[PredictorSpec], views: Sequence[str], device: torch.device
    ) -> None:
        self._predictors = {spec.name: spec.load(device, compiled=True) for spec in specs}
        self._views = [VIEWS[view] for view in views]

    def __call__(self, pixels: Tensor) -> dict[str, Any]:
        views = [view(pixels) for view in self._views]
        columns: dict[str, Any] = {}
        for name, predictor in self._predictors.items():
            answers = average_views([predictor.predict(view) for view in views])
            columns[f"vector of {name}"] = answers.vectors
            if answers.texts is not None:
                columns[f"text of {name}"] = np.array(answers.texts, object)
            if answers.confidences is not None:
                columns[f"confidence of {name}"] = answers.confidences
        return columns


def read_answers(table: pa.Table, name: str) -> Answers:
    """Return the answers of the predictor `name` from a table with the columns of its rows."""
    texts, confidences = f"text of {name}", f"confidence of {name}"
    present = table.column_names
    return Answers(
        to_matrix(table[f"vector of {name}"]),
        table[texts].to_pylist() if texts in present else None,
        table[confidences].to_numpy() if confidences in present else None,
    )
