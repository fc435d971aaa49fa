"""Counts and shares as text: Jinja2 filters that several pages use."""


def plural(count: int, noun: str) -> str:
    """Return the count with its noun: "1 epoch", "2 epochs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(share: float) -> str:
    """Return a share in whole percent, never as certain or impossible."""
    if share > 0.995:
        return "over 99\N{NO-BREAK SPACE}%"
    if 0 <= share < 0.005:
        return "under 1\N{NO-BREAK SPACE}%"
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"
