"""Names of the views of a picture, which `model/views.py` makes."""

from collections.abc import Sequence
from typing import Literal, get_args

from img2prompt.config.base import check

View = Literal["plain", "flip"]


def check_views(views: Sequence[str], *, first: str = "") -> None:
    """Raise a UserError for no view, a repeated one, or another first view than `first`."""
    good = len(views) > 0 and len(set(views)) == len(views) and first in ("", views[0])
    begin = f", {first} first" if first else ""
    check(
        good, "views", tuple(views), f"one or more of {', '.join(get_args(View))}, each once{begin}"
    )
