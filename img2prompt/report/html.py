"""HTML pages as single files that load nothing from the network.

plotly.js is inside a page that has charts (about 5 MB), and a content security policy forbids all
requests, so a page can be stored, mailed or opened from a bucket. Jinja2 escapes every value that
Python passes to a template: markup is written in templates only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    import plotly.graph_objects as go


def render_page(
    template: str,
    figures: Mapping[str, go.Figure],
    filters: Mapping[str, Callable[..., object]],
    **values: Any,
) -> str:
    """Return the page of a template that extends `base.html`.

    Args:
        template: path under `report/templates`.
        figures: charts by the name under which the template places them.
        filters: functions that the template calls as Jinja2 filters.
        values: variables of the template.

    Raises:
        jinja2.UndefinedError: the template uses a variable that is not given.
    """
    environment = Environment(
        loader=PackageLoader("img2prompt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    environment.tests.update({"nan": _is_nan})
    return environment.get_template(template).render(
        figures=figures,
        figures_json=_to_json(figures),
        plotly_js=_plotly_js() if figures else "",
        **values,
    )


def _plotly_js() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


def _is_nan(value: Any) -> bool:
    return math.isnan(value)


def _to_json(figures: Mapping[str, go.Figure]) -> Markup:
    """Return all figures as JSON for a `script` element: Plotly escapes `<`, which could end it."""
    charts = (f"{json.dumps(name)}:{chart.to_json()}" for name, chart in figures.items())
    return Markup("{" + ",".join(charts) + "}")
