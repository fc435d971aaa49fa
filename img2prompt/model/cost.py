"""The unit of account of a training run: parameters, FLOP of a picture, memory of a worker.

`run_cost.py` predicts it, with the formulas of the tower's shape.
"""

from dataclasses import astuple, dataclass

FLOAT = 4
"""Bytes of a float32: weights, gradients, AdamW's moments and the residual stream."""
HALF = 2
"""Bytes of a bfloat16 or float16."""


@dataclass(frozen=True)
class Cost:
    """Parameters, FLOP of one picture, and bytes of memory; activations are of one picture."""

    parameters: int = 0
    learned: int = 0
    """Parameters that learn."""
    shortened: int = 0
    """Parameters that are kept in 16 bits: frozen matrices and their biases."""
    forward: int = 0
    """FLOP."""
    backward: int = 0
    """FLOP."""
    activations: int = 0
    copies: int = 0
    """16-bit copies of learning matrices, which autocast keeps until the backward pass is over."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def weights(self) -> int:
        """Bytes, with the copies."""
        long = self.parameters - self.shortened
        return FLOAT * long + HALF * self.shortened + self.copies

    @property
    def gradients(self) -> int:
        """Bytes."""
        return FLOAT * self.learned

    @property
    def optimizer(self) -> int:
        """Bytes of AdamW's two moments."""
        return 2 * FLOAT * self.learned

    def memory(
        self,
        rows: int,
        workers: int = 1,
        zero_stage: int = 0,
        averages: int = 0,
        pulled: bool = False,
    ) -> dict[str, int]:
        """Bytes in one of `workers` by purpose, when it takes `rows` pictures at once.

        `averages`: averages of the learned weights; validating one takes a second copy of them.
        `pulled`: the learned weights are pulled toward a copy of the pretrained ones.
        ZeRO (arXiv 1910.02054) divides the optimiser's state among the workers from stage 1 on,
        gradients from 2, weights in 3.
        """
        parts = [workers if zero_stage >= stage else 1 for stage in (1, 2, 3)]
        return {
            "weights": self.weights // parts[2],
            "gradients": self.gradients // parts[1],
            "optimiser": self.optimizer // parts[0],
            **({"averaged weights": FLOAT * self.learned * (averages + 1)} if averages else {}),
            **({"pretrained weights": FLOAT * self.learned} if pulled else {}),
            f"activations of {rows} rows": rows * self.activations,
        }

    def describe(
        self,
        rows: int,
        workers: int = 1,
        zero_stage: int = 0,
        averages: int = 0,
        pulled: bool = False,
    ) -> str:
        """One line with parameters, FLOP, and the memory of one worker, as in `memory`."""
        memory = self.memory(rows, workers, zero_stage, averages, pulled)
        parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in memory.items())
        both = self.forward + self.backward
        return (
            f"{self.learned / 1e6:.2f}M of {self.parameters / 1e6:.2f}M parameters learn "
            f"({self.learned / self.parameters:.1%}); GFLOP a row: {self.forward / 1e9:.4g} "
            f"forward, {both / 1e9:.4g} with backward; about {sum(memory.values()) / 1e9:.3g} GB a "
            f"worker ({parts})"
        )
