"""Many heads that learn together from cached features."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated

from pydantic import Field

from img2prompt.config.base import Config, check
from img2prompt.config.ranges import FractionBelowOne, NonNegativeInt, PositiveFloat, PositiveInt
from img2prompt.config.train import TrainConfig

NotEmpty = Field(min_length=1, description="one value or more, each of them once")


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(Config):
    """A grid of heads: every width with every dropout and every learning rate."""

    name: str = "heads"
    """Folder name of the result."""
    base: TrainConfig
    """A probe: the settings that all heads share."""
    widths: Annotated[tuple[NonNegativeInt, ...], NotEmpty] = (0, 512)
    dropouts: Annotated[tuple[FractionBelowOne, ...], NotEmpty] = (0.0, 0.2)
    lrs: Annotated[tuple[PositiveFloat, ...], NotEmpty] = (1e-3, 5e-3)
    """Peak learning rates."""
    keep: PositiveInt = 1
    """Best heads of each width that become runs of their own, for fine-tunes to start from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("widths", "dropouts", "lrs"):
            values: Sequence[float] = getattr(self, name)
            distinct = len(values) == len(set(values))
            check(distinct, name, values, "one value or more, each of them once")
        base, frozen = self.base, self.base.plan.frozen_tower
        rates = (base.plan.lora_rate, base.plan.nfz_rate)
        check(frozen, "base.plan", rates, "a probe, with rates 0 and no embeddings trained")
        check(base.engine.kind == "plain", "base.engine.kind", base.engine.kind, "plain")
        solver = base.optim.solver
        check(solver == "adamw", "base.optim.solver", solver, "adamw: heads learn in epochs")
        check(
            not base.start_from,
            "base.start_from",
            base.start_from,
            "empty: heads start from random weights",
        )
        check(not base.engine.mlflow, "base.engine.mlflow", base.engine.mlflow, "empty for heads")
        assert self.heads()  # the config of each head checks itself

    def heads(self) -> list[TrainConfig]:
        """Return the complete config of every head: a probe that could be trained alone."""
        return [
            self.base.replace(
                {
                    "name": f"width{width}-dropout{dropout:g}-lr{lr:g}",
                    "head.width": width,
                    "head.dropout": dropout,
                    "optim.head_lr": lr,
                }
            )
            for width, dropout, lr in product(self.widths, self.dropouts, self.lrs)
        ]
