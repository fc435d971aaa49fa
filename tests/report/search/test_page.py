"""The page of a search: its text, its charts, escaping, and drawing in a browser."""

import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import failed, on_shares, row, search, settings, stop
from report_pages import HOSTILE, browse, figures, words

from img2prompt.report.search.page import page
from img2prompt.report.search.trial_rows import TooFew

Rows = list[dict[str, Any]]
CHARTS = {
    "leaders", "spent", "curves", "parallel", "importance", "plans", "cost", "bands", "widths"
}  # fmt: skip
FEW = CHARTS - {"importance", "bands", "widths"}


def truth(setting: dict[str, Any]) -> float:
    return 0.7 + 0.05 * setting["lora_rate"] + 0.03 * setting["nfz_rate"]


def twenty_settings() -> Rows:
    """Return 60 trials, 30 of them stopped after an epoch, and a failed one."""
    order = np.random.default_rng(0).permutation(len(settings()))[:20]
    rows = search(truth, [settings()[n] for n in order], noise=0.001, seeds=3)
    return [*stop(rows, 1, keep=30), failed(settings()[order[0]], "node <b>lost</b> & gone")]


def test_the_page_has_every_chart_and_every_trial() -> None:
    html = page(twenty_settings())
    assert set(figures(html)) == CHARTS
    assert html.count("<tr class=") == 61
    said = words(html)
    assert "Best setting: lora_rate 0.8, nfz_rate 0.2" in said
    assert "finished / stopped / failed30 / 30 / 1" in said
    assert re.search(r"(Clear|Likely|Undecided): its mean is 0\.\d{4} above the runner-up", said)
    assert "Clear effects: lora_rate" in said
    assert "after 1 epoch" in said


def hostile_search() -> Rows:
    """Return trials with markup, quotes and right-to-left marks in names, values and reasons."""
    rows = stop(search(truth, settings(widths=(0,), loss=HOSTILE), 0.001, seeds=2), 1, keep=70)
    rows.append(failed(rows[0]["setting"]))
    return [r | {"name": f"{r['name']} {HOSTILE[n % 4]}", "reason": HOSTILE[n % 4]}
            for n, r in enumerate(rows)]  # fmt: skip


def test_text_of_trials_is_never_markup() -> None:
    html = page(hostile_search())
    assert html.count("<script") == page(twenty_settings()).count("<script")
    assert "<img" not in html[html.index("</script>") :]
    assert len(figures(html)) == 8
    said = words(html)
    for text in HOSTILE:
        assert text in said
    hover = [trace["text"] for trace in figures(html)["spent"]["data"] if "text" in trace]
    assert all("<script" not in text and "<img" not in text for texts in hover for text in texts)


def test_text_of_trials_cannot_change_the_direction_of_a_sentence() -> None:
    setting = settings(widths=(0,), loss=HOSTILE[3:])
    html = page(search(truth, setting, 0.001))
    header = html[html.index("<header>") : html.index("</header>")]
    assert header.count(HOSTILE[3]) == 2  # the winner and the runner-up
    assert len(re.findall(f"<bdi>[^<]*{HOSTILE[3]}[^<]*</bdi>", header)) == 2


@pytest.mark.parametrize(
    ("rows", "charts", "said"),
    [
        ([row(settings()[0], 0.7)], {"curves"}, "No other trial has a score"),
        (
            [row(settings()[0], 0.7), *(failed(s) for s in settings()[1:4])],
            {"curves"},
            "1 / 0 / 3",
        ),
        (search(truth, settings()[:3]), FEW, "Confidence unknown"),
        (search(truth, settings()[:3]), FEW, "3 settings are too few for parameters head_width"),
        (search(truth, settings(widths=(0,)), 0.01), CHARTS - {"widths"}, "Only one head width"),
        (
            search(truth, settings(), 0.01),
            CHARTS,
            "No setting was repeated with another seed. In place",
        ),
        (search(truth, settings(optim__lr=[1e-4, 1e-3]), 0.01), CHARTS, "optim.lr"),
        (
            [r | {"plan": r["plan"] | {"lora": [], "trained": []}} for r in twenty_settings()],
            CHARTS - {"plans", "cost", "bands"},
            "0 settings have a partner",
        ),
    ],
)
def test_small_and_odd_searches(rows: Rows, charts: set[str], said: str) -> None:
    html = page(rows)
    assert set(figures(html)) == charts
    assert said in words(html)


def test_a_winner_by_one_lucky_seed_is_undecided() -> None:
    first, second = settings()[:2]
    rows = [row(first, 0.74), row(second, 0.73), row(second, 0.729, 1), row(first, 0.70, 1)]
    assert "Undecided: its mean is 0.0095 below" in words(page(rows))


def test_shares_of_the_rows_are_never_mixed() -> None:
    rows = on_shares(search(truth, settings(), 0.001, seeds=2), 0.25, keep=12)
    said = words(page(rows))
    assert "began on 25 % of the training rows, and the best continued on 100 %" in said
    best = np.mean([r["best"] for r in rows if r["setting"] == rows[0]["setting"]][:2])
    assert f"validation cosine {best:.4f} (mean of 2 seeds" in said
    assert f"From {len(settings())} settings after 4 epochs; fitted" in said
    assert "the order after 4 epochs on 25 % of the training rows has a rank correlation" in said
    # 54 settings twice, a quarter of the rows each, and 12 of 108 once on all.
    assert "of training all to the end36 %" in said


def test_no_score_no_page() -> None:
    with pytest.raises(TooFew, match="No trial has a score"):
        page([failed(settings()[0])])


def test_the_page_draws_every_chart_without_the_network(tmp_path: Path) -> None:
    html = page(twenty_settings())
    click = """<script>
        const [head] = [...document.querySelectorAll("th")].filter(h => h.innerText === "epochs");
        head.firstElementChild.click(); head.firstElementChild.click();
        for (const name in figures) {
          const place = document.getElementById(name);
          const drawn = place.querySelectorAll("svg.main-svg .trace, canvas");
          document.body.dataset[name] = drawn.length;
        }
        document.body.dataset.first = document.querySelector("tbody tr").className;
        document.body.dataset.asked = performance.getEntriesByType("resource").length;
        </script></body>"""
    shown, console = browse(tmp_path, html.replace("</body>", click))
    assert console == []
    data = dict(re.findall(r'data-(\w+)="(\w+)"', re.search(r"<body[^>]*>", shown)[0]))  # type: ignore[index]
    assert data.pop("asked") == "0"
    assert data.pop("first") == "failed"  # sorted by epochs, the fewest first
    assert set(data) == CHARTS
    assert all(int(count) > 0 for count in data.values()), data


def test_a_browser_runs_nothing_from_the_text_of_trials(tmp_path: Path) -> None:
    html = page(hostile_search())
    shown, console = browse(tmp_path, html)
    assert console == []
    assert "<title>Search of 145 trials</title>" in shown
    assert shown.count("<script") == html.count("<script")
    for text in HOSTILE:  # as a tick of the parallel coordinates
        assert f">{escape(text, quote=False)}</text>" in shown


def test_the_page_forbids_requests(tmp_path: Path) -> None:
    asks = '<img src="http://127.0.0.1:9/x.png"></body>'
    _, console = browse(tmp_path, page(search(truth, settings()[:3])).replace("</body>", asks))
    assert len(console) == 1
    assert "Content Security Policy" in console[0]
