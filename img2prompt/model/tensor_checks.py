"""Checks of weights that were read from files, and their messages."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from img2prompt.errors import UserError

MOST_LISTED = 5
"""Tensors with one kind of problem that a message lists: a tower has hundreds."""


def shortened(lines: Sequence[str]) -> list[str]:
    """Return the first lines, and one more with the number of those left out."""
    more = len(lines) - MOST_LISTED
    return [*lines[:MOST_LISTED], *([f"... and {more} more"] if more > 0 else [])]


def require_finite_weights(tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that no weight is NaN or infinite; `source` is the file or folder they came from.

    One NaN in a tower makes every feature NaN, without an error.

    Raises:
        UserError: names the first tensor that has such values, and how many.
    """
    counts = {name: _count_nonfinite(tensor) for name, tensor in tensors.items()}
    bad = {name: count for name, count in counts.items() if count}
    if not bad:
        return
    name, count = next(iter(bad.items()))
    others = f", and {len(bad) - 1} other tensors have some" if len(bad) > 1 else ""
    raise UserError(
        f"{source}: {count} of {tensors[name].numel()} values of tensor {name} are non-finite "
        f"(NaN or infinite){others}: the file is damaged, or its training diverged; give other "
        "weights"
    )


def _count_nonfinite(tensor: Tensor) -> int:
    """Count NaN and infinite values; the sum of a finite tensor is finite in float64."""
    if not tensor.is_floating_point() or torch.isfinite(tensor.sum(dtype=torch.float64)):
        return 0
    return tensor.numel() - int(torch.isfinite(tensor).sum())
