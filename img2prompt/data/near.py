"""Near pairs of unit vectors: few candidates, and among them every pair that reaches a cosine.

A short row of bf16 numbers stands for each vector: its coordinates along the first principal
components and, as one more, the length of the rest. By Cauchy and Schwarz
x.y <= x_k.y_k + |x_rest| |y_rest|, the dot product of two such rows (the l2-norm bound of L2AP,
Anastasiu and Karypis, ICDE 2014, folded into the product). So one narrow matrix product bounds
every cosine of a tile from above, and maxima at memory speed find the few places to look at again.
What is left there is checked in float32, and in the end float64 decides.

No near pair is lost: the bound is widened by what bf16 took from these very rows, measured in
float64, and by the worst case of the summation. The components come from a sample; a poor sample
lets more pairs pass, never fewer.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from img2prompt.data.vectors import exact_cosine

COORDINATES = 96
"""Numbers in a short row. With 64 a product takes 0.7 of the time and 5 times as many pairs pass;
with 96, 1 to 3 of 10,000 pairs of real prompts pass at a cosine of 0.85."""

TILE = 2048
"""Rows and columns of one product: its 4M bounds (8 MB in bf16) stay in the cache."""

PAIRS_AT_ONCE = 8192
"""Candidates checked at once: their vectors (25 MB for 384) stay in the cache."""

_STRIP = 256
_ROWS_AT_ONCE = 1024
_SAMPLE = 2048

Pairs = tuple[np.ndarray, np.ndarray]
"""Row numbers (P,), (P,)."""


@dataclass(frozen=True)
class Near:
    """Unit vectors and their short rows; nothing but arrays, so that workers can share one copy.

    Memory: 192 bytes a row beside the vectors (which may be a memory map), and 50 MB for a tile and
    its candidates, whatever N. On a machine with a GPU the vectors and short rows are copied to it.
    """

    vectors: np.ndarray
    """float32 (N, D)."""
    short: np.ndarray
    """(N, K): int16, the bits of bf16; float32 where the processor has no bf16 products."""
    slack: float
    """How far the product of two short rows may lie below the cosine."""

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def margin(self) -> float:
        """Largest error of a float32 dot product of two vectors, in whatever order it is summed."""
        return _summation_error(self.vectors.shape[1])

    def candidates(
        self, rows: np.ndarray, others: np.ndarray, floor: np.ndarray
    ) -> Iterator[Pairs]:
        """Pairs of one of `rows` and one of `others`, at most PAIRS_AT_ONCE at a time.

        Among them is every pair whose cosine is at or above `floor` (N,) of the first. The floor is
        read anew for each tile, so it may rise meanwhile. All rows meet the first tile of others,
        then the next; pairs of a tile come by the order in `rows`, then in `others`.
        """
        work = self._work
        for column in chunks(others, work.tile):
            right = work.short[work.index(column)].T
            for row in chunks(rows, work.tile):
                bounds = work.product(work.short[work.index(row)], right)
                place = _at_least(bounds, self._cut(floor[row], bounds))
                for some in chunks(place, PAIRS_AT_ONCE):
                    yield row[some // len(column)], column[some % len(column)]

    def at_least(
        self, row: np.ndarray, other: np.ndarray, floor: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of at most PAIRS_AT_ONCE pairs whose float64 cosine reaches `floor` (N,) of `row`.

        Returns rows, others and cosines (float64), in the same order.
        """
        likely = self._cosine(row, other) >= floor[row] - self.margin
        row, other = row[likely], other[likely]
        cosine = exact_cosine(self.vectors[row], self.vectors[other])
        sure = cosine >= floor[row]
        return row[sure], other[sure], cosine[sure]

    def _cosine(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """float32 (P,), each right to `margin`."""
        work = self._work
        a, b = (
            torch.index_select(work.vectors, 0, work.index(number), out=room[: len(number)])
            for number, room in zip((left, right), work.pairs, strict=True)
        )
        return a.mul_(b).sum(dim=1).cpu().numpy()

    def _cut(self, floor: np.ndarray, bounds: torch.Tensor) -> torch.Tensor:
        """Bits (B,) of the smallest bound that a cosine at the floor can have."""
        dtype = torch.bfloat16 if bounds.dtype == torch.int16 else torch.float32
        lowest = torch.from_numpy(floor - self.slack).to(dtype)
        # Bits of negative numbers are not in order: a cut at or below zero lets everything pass.
        every = torch.iinfo(bounds.dtype).min
        return lowest.view(bounds.dtype).masked_fill(lowest <= 0, every).to(bounds.device)

    @cached_property
    def _work(self) -> "_Work":
        return _Work(self.vectors, self.short)

    def __getstate__(self) -> dict[str, object]:
        return {name: self.__dict__[name] for name in ("vectors", "short", "slack")}


def near(vectors: np.ndarray, coordinates: int = COORDINATES) -> Near:
    """Short rows for float32 unit vectors (N, D); with `coordinates` > D nothing is cut off."""
    components = _principal(vectors, coordinates - 1)
    dtype = torch.bfloat16 if _has_bf16() else torch.float32
    short = torch.empty(len(vectors), components.shape[1] + 1, dtype=dtype)
    length = lost = 0.0
    for part in chunks(np.arange(len(vectors)), _ROWS_AT_ONCE):
        wide = torch.from_numpy(vectors[part[0] : part[-1] + 1].astype(np.float64))
        first = wide @ components
        rest = wide.square().sum(dim=1).sub_(first.square().sum(dim=1)).clamp_(min=0).sqrt_()
        exact = torch.cat([first, rest[:, None]], dim=1)
        rounded = short[part[0] : part[-1] + 1] = exact.to(dtype)
        length = max(length, rounded.double().norm(dim=1).max().item())
        lost = max(lost, exact.sub_(rounded).norm(dim=1).max().item())
    # With rounded x', y': x.y = x'.y' + (x - x').y' + x'.(y - y') + (x - x').(y - y').
    slack = 2 * lost * length + lost**2 + _summation_error(short.shape[1])
    bits = short.view(torch.int16) if dtype == torch.bfloat16 else short
    return Near(vectors, bits.numpy(), slack)


def chunks(numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """An array in parts of a size; the last may be shorter."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _principal(vectors: np.ndarray, count: int) -> torch.Tensor:
    """float64 (D, at most count): orthonormal axes along which a sample is longest."""
    step = max(1, len(vectors) // _SAMPLE)
    sample = torch.from_numpy(vectors[::step].astype(np.float64))
    return torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1)[:, :count].contiguous()


def _summation_error(terms: int) -> float:
    """Bound of |float32 sum - sum| of so many products of numbers of two rows of about unit length.

    n 2^-24 / (1 - n 2^-24) for any order of summation (Higham, Accuracy and Stability, 3.1), and
    the same again for the rounding of products and lengths a little above 1.
    """
    return terms * 2.0**-23


def _has_bf16() -> bool:
    there = torch.cpu.get_capabilities()
    return torch.cuda.is_available() or any(map(there.get, ("avx512_bf16", "amx_bf16")))


class _Work:
    """Tensors on the device, and room that is used again for each tile: new pages cost more."""

    def __init__(self, vectors: np.ndarray, short: np.ndarray) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with warnings.catch_warnings():
            # Ray and memory maps give arrays that cannot be written to, and nobody does.
            warnings.filterwarnings("ignore", message=".*not writable")
            self.vectors = torch.from_numpy(vectors).to(self._device)
            bits = torch.from_numpy(short).to(self._device)
        self.short = bits.view(torch.bfloat16) if bits.dtype == torch.int16 else bits
        self.tile = TILE if self._device.type == "cpu" else 4 * TILE
        shape = (PAIRS_AT_ONCE, vectors.shape[1])
        self.pairs = [torch.empty(shape, device=self._device) for _ in range(2)]
        self._bounds = torch.empty(TILE**2, dtype=self.short.dtype)

    def index(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Bits (B, M) of left (B, K) @ right (K, M) as integers, for which a maximum is 8 times
        faster; those of positive numbers are in order, and all others below them."""
        if self._device.type == "cuda":
            # A GPU that gives bf16 may also round its partial sums to it.
            bounds = torch.mm(left, right, out_dtype=torch.float32)
        else:
            bounds = self._bounds[: len(left) * right.shape[1]].view(len(left), -1)
            torch.mm(left, right, out=bounds)
        return bounds.view(torch.int16 if bounds.dtype == torch.bfloat16 else torch.int32)


def _at_least(bounds: torch.Tensor, cut: torch.Tensor) -> np.ndarray:
    """Places, row by row, of the bounds (B, M) that are at or above the cut (B,) of their row."""
    width = _STRIP if bounds.shape[1] % _STRIP == 0 else bounds.shape[1]
    strips = bounds.view(-1, width)
    cut = cut.repeat_interleave(bounds.shape[1] // width)
    some = torch.nonzero(strips.amax(dim=1) >= cut).squeeze(1)
    found = np.flatnonzero((strips[some] >= cut[some, None]).cpu().numpy())
    return some.cpu().numpy()[found // width] * width + found % width
