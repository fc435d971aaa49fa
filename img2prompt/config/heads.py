"""Many heads that learn together from cached features."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from img2prompt.config.base import Config, check
from img2prompt.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(Config):
    """A grid of heads: every width with every dropout and every learning rate."""

    name: str = "heads"
    """Folder name of the result."""
    base: TrainConfig
    """A probe; what all heads share."""
    widths: tuple[int, ...] = (0, 512)
    dropouts: tuple[float, ...] = (0.0, 0.2)
    lrs: tuple[float, ...] = (1e-3, 5e-3)
    """Peak learning rates."""
    keep: int = 1
    """Best heads of each width that become runs of their own, for fine-tunes to start from."""

    def __post_init__(self) -> None:
        for name in ("widths", "dropouts", "lrs"):
            values: Sequence[float] = getattr(self, name)
            distinct = 0 < len(values) == len(set(values))
            check(distinct, name, values, "one value or more, each of them once")
        check(self.keep >= 1, "keep", self.keep, "1 or more")
        base, frozen = self.base, self.base.plan.frozen_tower
        rates = (base.plan.lora_rate, base.plan.nfz_rate)
        check(frozen, "base.plan", rates, "a probe, with rates 0 and no embeddings trained")
        check(base.engine.kind == "plain", "base.engine.kind", base.engine.kind, "plain")
        check(not base.start_from, "base.start_from", base.start_from, "empty: heads begin anew")
        check(not base.engine.mlflow, "base.engine.mlflow", base.engine.mlflow, "empty for heads")
        assert self.heads()  # each is a config that checks itself

    def heads(self) -> list[TrainConfig]:
        """The complete config of every head: a probe that could be trained alone."""
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
