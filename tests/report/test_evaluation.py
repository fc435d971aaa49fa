"""The page of an evaluation: its numbers, its charts, escaping, and drawing in a browser."""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import HOSTILE, browse, figures, words

from img2prompt.report.evaluation import FEW_GROUPS, Results, page, ranking

BASELINE = "mean vector"


def score(values: np.ndarray, groups: int = 30) -> dict[str, Any]:
    """Return a score whose interval is half as wide as the values' deviation."""
    mean, half = float(values.mean()), float(values.std()) / 4
    low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "rows": len(values), "groups": groups}


def results(
    means: Mapping[str, float], sources: tuple[str, ...] = ("scenes",), groups: int = 30
) -> Results:
    """Return results on 60 pictures, the mean cosine of a system as given."""
    spread = np.random.default_rng(0).normal(0, 0.05, 60)
    cosines = {name: mean + spread - spread.mean() for name, mean in means.items()}
    names = np.resize(np.array(sources), 60)
    systems = {
        name: {
            "all": score(values, groups),
            "by_source": {source: score(values[names == source]) for source in sources},
        }
        for name, values in cosines.items()
    }
    best = ranking(systems)[0]
    leads = {
        name: {"mean": gap, "low": gap - 0.01, "high": gap + 0.01, "rows": 60, "groups": groups}
        for name in means
        if name != best
        for gap in [means[best] - means[name]]
    }
    return Results("test", groups, BASELINE, systems, leads, cosines)


def table_of(html: str) -> list[list[str]]:
    """Return the text of the cells of the table, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", html[html.index("<tbody>") :], re.S)
    return [[re.sub("<.*?>", "", c) for c in re.findall("<td.*?</td>", row)] for row in rows]


def test_the_headline_says_how_good_and_how_certain() -> None:
    html = page(results({BASELINE: 0.5, "probe": 0.7, "lora": 0.75}))
    said = words(html)
    assert "Scores on 60 test pictures" in said
    assert "Best system: lora, mean cosine 0.7500 (95 % interval 0." in said
    assert "Its gain over the baseline, mean vector, is +0.2500 (+0.2400 to +0.2600)" in said
    assert "The runner-up is probe. The difference, +0.0500 (+0.0400 to +0.0600)" in said
    assert "is clear of chance" in said
    assert "prompt groups30" in said
    assert "pictures with a gainover 99 %" in said


@pytest.mark.parametrize(
    ("means", "groups", "said"),
    [
        ({BASELINE: 0.5, "probe": 0.745, "lora": 0.75}, 30, "is not clear of chance"),
        ({BASELINE: 0.5, "probe": 0.75, "lora": 0.75}, 30, "The difference, +0.0000 (-0.0100 to"),
        ({BASELINE: 0.5, "probe": 0.7}, 30, "Its gain over the baseline, mean vector, is +0.2000"),
        ({BASELINE: 0.5, "probe": 0.4}, 30, "No system is better than this baseline"),
        ({BASELINE: 0.5, "probe": 0.6, "lora": 0.7}, 1, "is +0.2000. The runner-up is probe"),
        ({BASELINE: 0.5, "probe": 0.6, "lora": 0.7}, 1, "+0.1000, is of unknown certainty"),
    ],
)
def test_small_and_odd_evaluations(means: dict[str, float], groups: int, said: str) -> None:
    assert said in words(page(results(means, groups=groups))).replace(" .", ".")


def test_the_table_has_every_system_the_best_first() -> None:
    rows = table_of(page(results({BASELINE: 0.5, "probe": 0.7, "lora": 0.75})))
    assert [row[0] for row in rows] == ["lora", "probe", BASELINE]
    assert [row[1] for row in rows] == ["0.7500", "0.7000", "0.5000"]
    assert [row[3] for row in rows] == ["+0.2500", "+0.2000", ""]
    assert rows[0][4:] == ["", "60", "30"]
    assert rows[1][4] == "+0.0500 (+0.0400 to +0.0600)"


def test_an_interval_that_rests_on_few_prompts_says_so() -> None:
    for groups, said in ((FEW_GROUPS - 1, True), (FEW_GROUPS, False)):
        rows = table_of(page(results({BASELINE: 0.5, "probe": 0.7}, groups=groups)))
        assert all(row[2].endswith("(few prompts)") == said for row in rows)
        assert [row[-1] for row in rows] == [str(groups)] * 2


def test_sources_have_rows_and_blocks_where_there_are_several() -> None:
    several = results({BASELINE: 0.5, "lora": 0.7}, sources=("files", "scenes"))
    html = page(several)
    assert [row[:2] for row in table_of(html)] == [
        [name, source] for name in ("lora", BASELINE) for source in ("all", "files", "scenes")
    ]
    chart = figures(html)["scores"]
    assert chart["layout"]["yaxis"]["ticktext"] == ["all pictures", "files", "scenes"]
    best = chart["data"][0]
    by_source = several.systems["lora"]["by_source"]
    assert best["x"] == pytest.approx(
        [0.7, by_source["files"]["mean"], by_source["scenes"]["mean"]]
    )
    lows = np.subtract(best["x"], best["error_x"]["arrayminus"])
    assert lows[1] == pytest.approx(by_source["files"]["low"])
    heights = [y for trace in chart["data"] for y in trace["y"]]
    assert len(set(heights)) == 6


def test_curves_are_the_distribution_of_each_systems_cosines() -> None:
    made = results({BASELINE: 0.5, "lora": 0.7})
    lora, baseline = figures(page(made))["distributions"]["data"]
    assert (lora["name"], baseline["name"]) == ("lora", BASELINE)
    cosines = made.cosines["lora"]
    assert (lora["x"][0], lora["x"][-1]) == (cosines.min(), cosines.max())
    assert lora["x"][100] == pytest.approx(np.median(cosines))
    assert lora["y"][100] == 50


def hostile() -> Results:
    """Return an evaluation with markup, quotes and right-to-left marks in its names."""
    systems = {BASELINE: 0.5} | {name: 0.7 - n / 100 for n, name in enumerate(HOSTILE)}
    return results(systems, sources=tuple(reversed(HOSTILE)))


def test_names_are_never_markup() -> None:
    html = page(hostile())
    assert html.count("<script") == page(results({BASELINE: 0.5, "a": 0.6})).count("<script")
    assert "<img" not in html[html.index("</script>") :]
    assert all(name in words(html) for name in HOSTILE)
    for chart in figures(html).values():
        texts = [chart["layout"]["yaxis"].get("ticktext", [])]
        texts += [[trace["name"], *trace["text"]] for trace in chart["data"]]
        assert not re.search("<(?!/?b>|br>)", "".join(text for group in texts for text in group))


def test_names_cannot_change_the_direction_of_a_sentence() -> None:
    html = page(hostile())
    body = html[html.index("<header>") : html.index("</main>")]
    shown = re.sub(r'data-value="[^"]*"', "", body)
    assert shown.count(HOSTILE[3]) == shown.count(f"<bdi>{HOSTILE[3]}</bdi>") > 0


def test_a_browser_draws_the_charts_and_runs_nothing_from_names(tmp_path: Path) -> None:
    html = page(hostile())
    count = """<script>
        for (const head of document.querySelectorAll("th")) head.firstElementChild.click();
        for (const name in figures)
          document.body.dataset[name] =
            document.getElementById(name).querySelectorAll("svg.main-svg .trace").length;
        document.body.dataset.asked = performance.getEntriesByType("resource").length;
        </script></body>"""
    shown, console = browse(tmp_path, html.replace("</body>", count))
    assert console == []
    assert "<title>Scores on 60 test pictures</title>" in shown
    body = re.search(r"<body[^>]*>", shown)
    assert body
    drawn = dict(re.findall(r'data-(\w+)="(\d+)"', body[0]))
    assert drawn == {"scores": "5", "distributions": "5", "asked": "0"}
    assert escape("<img src=x", quote=False) in shown
