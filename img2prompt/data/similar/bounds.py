"""Near pairs of unit vectors: few candidates, among them every pair that reaches a cosine.

Each vector is represented by a short row of 8-bit integers: its coordinates along the first
principal components and, as one more, the length of the rest. By Cauchy and Schwarz
x.y <= x_k.y_k + |x_rest| |y_rest|, the dot product of two such rows (the l2-norm bound of L2AP,
Anastasiu and Karypis, ICDE 2014, folded into the product). So one narrow matrix product bounds
every cosine of a tile from above, and maxima at memory speed find the few candidates. These are
checked in float32, and the rest in float64.

No near pair is lost: the products are exact integers, and the bound is widened by the rounding
error of these rows, measured in float64. The components come from a sample; a poor sample lets more
pairs pass, never fewer.
"""

import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.fft
import torch

from img2prompt.data.similar.threads import Threads
from img2prompt.data.vectors import exact_cosine

COORDINATES = 112
"""Length of a short row. With 64, 5 to 7 times as many pairs pass and a product takes 0.85 of the
time; with 112, 2 to 5 of 10,000 pairs of real prompts pass at a cosine of 0.85."""

TILE = 1536
"""Rows and columns of one product on a CPU: its bounds (9 MB) stay in the cache."""

PAIRS_AT_ONCE = 8192
"""Candidates checked at once: their vectors (25 MB for 384) stay in the cache."""

_STRIP = 256
_ROWS_AT_ONCE = 1024
_SAMPLE = 2048
_LARGEST = 127
_STORED = 1e-6
"""Upper bound of the error in a product from storing coordinates in float32 before rounding."""


@dataclass(frozen=True)
class NearPairs:
    """Unit vectors and their short rows; only arrays, so that workers can share one copy.

    Memory: 112 bytes a row beside the vectors, which may be a memory map (560 at first),
    and 50 MB a thread for a tile and its candidates. A GPU gets a copy of vectors and short rows.
    """

    vectors: np.ndarray
    """float32 (N, D)."""
    short: np.ndarray
    """int8 (N, K)."""
    scale: float
    """Factor of a coordinate before rounding."""
    slack: float
    """Largest amount by which the product of two short rows over scale^2 is below the cosine."""

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def tile(self) -> int:
        """Rows and columns of one product."""
        return 4 * TILE if torch.cuda.is_available() else TILE

    @property
    def margin(self) -> float:
        """Largest error of a float32 dot product of two vectors, in whatever order it is summed.

        n u / (1 - n u) with u = 2^-24 (Higham, Accuracy and Stability, section 3.1), twice, for the
        rounding of the products and lengths a little above 1.
        """
        return self.vectors.shape[1] * 2.0**-23

    def candidates(
        self, rows: np.ndarray, others: np.ndarray, floor: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield candidate pairs of `rows` and `others` (at most `tile` of each), in that order.

        They include every pair whose cosine is at or above `floor` (N,) of its row, in arrays of at
        most PAIRS_AT_ONCE pairs. Thread-safe.
        """
        work = self._work
        bounds = work.product(work.short[work.index(rows)], work.short[work.index(others)])
        pairs = _at_least(bounds, work.index(self._cut(floor[rows])))
        for some in chunks(pairs, PAIRS_AT_ONCE):
            yield rows[some // len(others)], others[some % len(others)]

    def at_least(
        self, row: np.ndarray, other: np.ndarray, floor: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Select the pairs whose float64 cosine is at or above `floor` (N,) of `row`.

        Given at most PAIRS_AT_ONCE pairs, return rows, others and float64 cosines in their order.
        """
        likely = self._work.cosine(row, other) >= floor[row] - self.margin
        row, other = row[likely], other[likely]
        cosine = exact_cosine(self.vectors[row], self.vectors[other])
        sure = cosine >= floor[row]
        return row[sure], other[sure], cosine[sure]

    def _cut(self, floor: np.ndarray) -> np.ndarray:
        """Return the smallest product of short rows at a cosine of the floor: int32 (B,)."""
        lowest = np.ceil((floor - self.slack) * self.scale**2)
        return lowest.clip(-(2**24), 2**24).astype(np.int32)

    @property
    def _work(self) -> "_Work":
        if not hasattr(self._own, "work"):
            self._own.work = _Work(self.vectors, self.short)
        return self._own.work

    @cached_property
    def threads(self) -> Threads:
        """Threads for work on these vectors; one if there is a GPU, which holds a copy for each."""
        return Threads(1 if torch.cuda.is_available() else torch.get_num_threads())

    @cached_property
    def _own(self) -> threading.local:
        return threading.local()

    def __getstate__(self) -> dict[str, object]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


def near_pairs(vectors: np.ndarray, coordinates: int = COORDINATES) -> NearPairs:
    """Compute short rows of float32 unit vectors (N, D); with `coordinates` > D none is cut."""
    components = _principal(vectors, coordinates - 1)
    width = components.shape[1] + 1
    assert width * _LARGEST**2 < 2**24, "float32 would not hold the products exactly"
    # Another rotation equalises the coordinates of a row, so that all lose alike by rounding.
    mixed = torch.from_numpy(scipy.fft.dct(np.eye(width), norm="ortho"))
    axes = components @ mixed[:-1]
    exact = torch.empty(len(vectors), width)

    def fill(start: int) -> None:
        part = torch.from_numpy(vectors[start : start + _ROWS_AT_ONCE].astype(np.float64))
        first = part @ axes
        rest = part.square().sum(dim=1).sub_(first.square().sum(dim=1)).clamp_(min=0).sqrt_()
        exact[start : start + len(part)] = first.addcmul_(rest[:, None], mixed[-1])

    for _ in Threads(torch.get_num_threads()).map(fill, range(0, len(vectors), _ROWS_AT_ONCE)):
        pass
    return NearPairs(vectors, *_rounded(exact))


def _rounded(exact: torch.Tensor) -> tuple[np.ndarray, float, float]:
    """Return rows (N, K) as int8, their factor, and the slack of their products."""
    scale = _LARGEST / max(exact.abs().max().item(), 1e-3) if len(exact) else 1.0
    short = torch.empty(exact.shape, dtype=torch.int8)

    def fill(start: int) -> tuple[float, float]:
        part = exact[start : start + _ROWS_AT_ONCE].double()
        whole = (part * scale).round_()
        short[start : start + len(part)] = whole
        length = whole.div_(scale).norm(dim=1).max().item()
        return length, part.sub_(whole).norm(dim=1).max().item()

    norms = [*Threads(torch.get_num_threads()).map(fill, range(0, len(exact), _ROWS_AT_ONCE))]
    length, lost = np.max(norms, axis=0) if norms else (0.0, 0.0)
    # With rounded x', y': x.y = x'.y' + (x - x').y' + x'.(y - y') + (x - x').(y - y').
    return short.numpy(), scale, 2 * lost * length + lost**2 + _STORED


def chunks(numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """An array in parts of a size; the last may be shorter."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _principal(vectors: np.ndarray, count: int) -> torch.Tensor:
    """float64 (D, at most count): orthonormal axes along which a sample is longest."""
    step = max(1, len(vectors) // _SAMPLE)
    sample = torch.from_numpy(vectors[::step].astype(np.float64))
    return torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1)[:, :count].contiguous()


def _has_int8() -> bool:
    """Return whether byte products are exact (AVX2 may overflow in between)."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "amx_int8"))


class _Work:
    """Tensors of one thread, with buffers that are reused for each tile: new pages cost more."""

    def __init__(self, vectors: np.ndarray, short: np.ndarray) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with warnings.catch_warnings():
            # Arrays from Ray and memory maps are read-only, and nothing writes to them.
            warnings.filterwarnings("ignore", message=".*not writable")
            self.vectors = torch.from_numpy(vectors).to(self._device)
            self.short = torch.from_numpy(short).to(self._device)
        self._bounds = torch.empty(TILE**2, dtype=torch.int32 if _has_int8() else torch.float32)
        shape = (PAIRS_AT_ONCE, vectors.shape[1])
        self._pairs = [torch.empty(shape, device=self._device) for _ in range(2)]

    def index(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return left (B, K) @ right.T (K, M) of int8 exactly, (B, M), in the fastest dtype.

        bf16 represents every int8, and float32 every sum of products, so nothing is rounded.
        """
        if self._device.type == "cuda":
            return torch.mm(left.bfloat16(), right.bfloat16().T, out_dtype=torch.float32)
        bounds = self._bounds[: len(left) * len(right)].view(len(left), -1)
        if bounds.dtype == torch.int32:
            return torch._int_mm(left, right.T, out=bounds)
        return torch.mm(left.float(), right.float().T, out=bounds)

    def cosine(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return float32 (P,): dot products of at most PAIRS_AT_ONCE pairs of vectors."""
        a, b = (
            torch.index_select(self.vectors, 0, self.index(number), out=room[: len(number)])
            for number, room in zip((left, right), self._pairs, strict=True)
        )
        return a.mul_(b).sum(dim=1).cpu().numpy()


def _at_least(bounds: torch.Tensor, cut: torch.Tensor) -> np.ndarray:
    """Return flat indices of the bounds (B, M) that are at or above the cut (B,) of their row."""
    width = _STRIP if bounds.shape[1] % _STRIP == 0 else bounds.shape[1]
    strips = bounds.view(-1, width)
    cut = cut.repeat_interleave(bounds.shape[1] // width)
    some = torch.nonzero(strips.amax(dim=1) >= cut).squeeze(1)
    passing = np.flatnonzero((strips[some] >= cut[some, None]).cpu().numpy())
    return some.cpu().numpy()[passing // width] * width + passing % width
