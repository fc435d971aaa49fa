"""Colours and hover text of trials, which all charts of a search share."""

from img2prompt.report.chart_style import plain
from img2prompt.report.search.trial_rows import TrialRow
from img2prompt.report.search.wording import level

FINISHED, STOPPED, FAILED = "#2a9d8f", "#9099ab", "#d1495b"
SCALE = [[0.0, "#7a78c8"], [0.5, "#2a9d8f"], [1.0, "#f2a900"]]
"""Low to high; every part is visible on white and on black."""


def describe(row: TrialRow) -> str:
    """Return a trial's setting, layers and cost for a hover box."""
    setting = "<br>".join(plain(f"{name} {level(v)}") for name, v in row["setting"].items())
    layers = ", ".join(f"{len(row['plan'][kind])} {kind}" for kind in ("frozen", "lora", "trained"))
    return (
        f"<b>{plain(row['name'])}</b>, seed {row['seed']}<br>{setting}<br>layers: {layers}<br>"
        f"{row['flop'] / 1e9:,.4g} GFLOP per picture, {len(row['epochs'])} epochs, {row['end']}"
    )
