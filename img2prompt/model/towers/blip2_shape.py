"""Sizes of the vision tower of BLIP-2 with its Q-Former, and what training one costs.

The Q-Former (arXiv 2301.12597) is a BERT whose m query tokens attend to each other, and in every
second layer to the n tokens of the vision transformer; LayerNorms follow the sums. It learns whole
with the top layer, or not at all.
"""

from dataclasses import dataclass

from img2prompt.model.cost import Cost
from img2prompt.model.towers.block_cost import (
    FROZEN,
    Learning,
    Matrix,
    activation_copies,
    attention_cost,
    element,
    matrix_cost,
    norm_cost,
)
from img2prompt.model.towers.vit_shape import VitShape


@dataclass(frozen=True, kw_only=True)
class QFormerShape:
    """Sizes of a Q-Former."""

    depth: int
    width: int
    mlp: int
    heads: int
    activation: str
    queries: int
    """Query tokens."""
    cross_every: int
    """One of so many layers attends to the picture, the first one too."""


@dataclass(frozen=True, kw_only=True)
class Blip2Shape(VitShape):
    """Sizes of a vision transformer with a Q-Former."""

    q_former: QFormerShape

    def pooling_cost(self, *, learned: bool, below: bool, half: bool) -> Cost:
        shape = self.q_former
        walk = _Walk(shape, Learning(trained=True) if learned else FROZEN, half)
        tokens = shape.queries * shape.width
        walk.total += Cost(parameters=tokens, learned=tokens if learned else 0)
        walk.total += norm_cost(shape.width, shape.queries, learned=learned, back=False)
        for number in range(shape.depth):
            walk.attend(shape.width, shape.queries, below=walk.below)
            if number % shape.cross_every == 0:
                walk.attend(self.token, self.tokens, below=below, cross=True)
            walk.think()
        return walk.total


class _Walk:
    """Adds up the parts of a Q-Former, from the queries on."""

    def __init__(self, shape: QFormerShape, learning: Learning, half: bool) -> None:
        self.total = Cost()
        self.below = learning.trained
        """The queries need gradients."""
        self._shape = shape
        self._learning = learning
        self._half = half

    def attend(self, width: int, keys: int, *, below: bool, cross: bool = False) -> None:
        """Add attention to `keys` tokens of a width; `below`: they need gradients."""
        d, m, trained = self._shape.width, self._shape.queries, self._learning.trained
        back = self.below or below or trained
        self._matrix(d, d, m, below=self.below)
        for _ in ("keys", "values"):
            self._matrix(width, d, keys, below=below)
        self.total += attention_cost(m, keys, d, self._shape.heads, back=back, half=self._half)
        self._matrix(d, d, m, below=back)
        inputs = m * d + keys * width if cross else m * d
        if self._half:  # each matrix casts its input
            inputs = m * d + 2 * keys * width
        self.total += Cost(activations=element(self._half) * inputs * trained)
        self._add_and_norm(back)

    def think(self) -> None:
        """Add the MLP."""
        d, f, m = self._shape.width, self._shape.mlp, self._shape.queries
        self._matrix(d, f, m, below=self.below)
        self._matrix(f, d, m, below=self.below)
        hidden = f * activation_copies(self._shape.activation) * self.below
        inputs = (d + f) * self._learning.trained
        self.total += Cost(activations=element(self._half) * m * (hidden + inputs))
        self._add_and_norm(self.below)

    def _matrix(self, inputs: int, outputs: int, positions: int, *, below: bool) -> None:
        matrix = Matrix(inputs=inputs, outputs=outputs)
        self.total += matrix_cost(matrix, positions, self._learning, below=below, half=self._half)

    def _add_and_norm(self, back: bool) -> None:
        d, m = self._shape.width, self._shape.queries
        self.total += norm_cost(d, m, learned=self._learning.trained, back=back)
        self.below = back
