"""Pages are built from the package's templates, and every value in them is escaped."""

import json
from importlib import resources

import plotly.graph_objects as go
import pytest
from jinja2 import UndefinedError

from img2prompt.report.html import render_page


def test_templates_are_part_of_the_package() -> None:
    folder = resources.files("img2prompt.report") / "templates"
    names = {file.name for file in folder.iterdir()}
    assert {"base.html", "evaluation.html", "macros.html", "search"} <= names
    assert (folder / "search" / "page.html").is_file()


def test_figures_are_json_that_cannot_end_their_script() -> None:
    chart = go.Figure(layout={"title": {"text": "</script><b>"}})
    html = render_page("base.html", {"one": chart}, {})
    start = html.index('id="figures">')
    end = html.index("</script>", start)
    figures = json.loads(html[start:end].partition(">")[2])
    assert figures["one"]["layout"]["title"]["text"] == "</script><b>"


def test_a_variable_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render_page("search/page.html", {}, {"plural": lambda count, noun: ""})
