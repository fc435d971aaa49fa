"""Rows of trials.json whose scores follow a known function, for tests of the report."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

DEPTH = 10
RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
WIDTHS = (0, 1024, 4096)
Truth = Callable[[dict[str, Any]], float]


def settings(
    rates: Sequence[float] = RATES, widths: Sequence[int] = WIDTHS, **extra: Sequence[Any]
) -> list[dict[str, Any]]:
    """Return every valid setting of the grid in which at least one layer learns."""
    names = ("lora_rate", "nfz_rate", "head_width", *(name.replace("__", ".") for name in extra))
    grid = [
        dict(zip(names, values, strict=True))
        for values in product(rates, rates, widths, *extra.values())
    ]
    return [s for s in grid if 0 < s["lora_rate"] + s["nfz_rate"] <= 1]


def plan(setting: dict[str, Any]) -> dict[str, list[int]]:
    trained, lora = (round(DEPTH * setting[name]) for name in ("nfz_rate", "lora_rate"))
    edges = DEPTH - trained - lora, DEPTH - trained
    return {
        "frozen": list(range(edges[0])),
        "lora": list(range(*edges)),
        "trained": list(range(edges[1], DEPTH)),
    }


def flop(setting: dict[str, Any]) -> float:
    """Return the FLOP per picture: 1e9 per layer forward, more for layers that learn."""
    layers = plan(setting)
    return 1e9 * (DEPTH + len(layers["lora"]) + 2 * len(layers["trained"]))


def row(
    setting: dict[str, Any], score: float, seed: int = 0, epochs: int = 4, length: int = 4
) -> dict[str, Any]:
    """Return a trial that reaches `score` at epoch `length` and ended after `epochs`."""
    values = [score - 0.05 * (1 - (n + 1) / length) for n in range(epochs)]
    name = "-".join(f"{key.rpartition('.')[2]}{value}" for key, value in setting.items())
    layers = plan(setting)
    history = [
        {"epoch": n + 1, "train_loss": 1 - v, "val_cosine": v, "rows_per_second": 900.0}
        for n, v in enumerate(values)
    ]
    return {
        "name": f"{name}-seed{seed}",
        "setting": setting,
        "seed": seed,
        "plan": layers,
        "learned": 1000 * (12 * len(layers["trained"]) + len(layers["lora"]) + 1),
        "flop": flop(setting),
        "memory": 10**9 + 10**7 * len(layers["trained"]),
        "rows": 4000 * epochs,
        "seconds": 3.0 * epochs,
        "end": "finished" if epochs == length else "stopped",
        "reason": "" if epochs == length else f"not among the best after epoch {epochs}",
        "best": max(values, default=None),
        "share": 1.0,
        "epochs": history,
        "runs": [{"share": 1.0, "epochs": history}],
    }


def failed(setting: dict[str, Any], reason: str = "CUDA out of memory") -> dict[str, Any]:
    empty = {"end": "failed", "reason": reason, "best": None, "rows": 0}
    return row(setting, 0.0, epochs=0) | empty


def search(
    truth: Truth,
    chosen: Sequence[dict[str, Any]],
    noise: float = 0.0,
    seeds: int = 1,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return a search with every trial trained to the end, the best first."""
    rng = np.random.default_rng(seed)
    rows = [
        row(setting, truth(setting) + noise * rng.normal(), number)
        for setting in chosen
        for number in range(seeds)
    ]
    return sorted(rows, key=lambda r: -r["best"])


def stop(rows: Sequence[dict[str, Any]], epochs: int, keep: int) -> list[dict[str, Any]]:
    """Return the search with only the first `keep` trials trained beyond `epochs`."""
    return [
        r if rank < keep else row(r["setting"], r["best"], r["seed"], epochs)
        for rank, r in enumerate(rows)
    ]


def on_shares(rows: Sequence[dict[str, Any]], share: float, keep: int) -> list[dict[str, Any]]:
    """Return the search with all trials begun on `share` of the rows, `keep` continued on all."""
    shared = []
    for rank, r in enumerate(rows):
        small = [epoch | {"val_cosine": epoch["val_cosine"] - 0.2} for epoch in r["epochs"]]
        runs, cost = [{"share": share, "epochs": small}], round(r["rows"] * share)
        if rank < keep:
            shared.append(r | {"runs": runs + r["runs"], "rows": r["rows"] + cost})
        else:
            left = {"end": "stopped", "share": share, "epochs": small, "rows": cost, "runs": runs}
            shared.append(r | left | {"best": r["best"] - 0.2})
    return shared
