import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import failed, on_shares, row, search, settings, stop

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
    """60 trials, of which 30 were stopped after an epoch, and a failed one."""
    order = np.random.default_rng(0).permutation(len(settings()))[:20]
    rows = search(truth, [settings()[n] for n in order], noise=0.001, seeds=3)
    return [*stop(rows, 1, keep=30), failed(settings()[order[0]], "node <b>lost</b> & gone")]


def figures(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


def words(html: str) -> str:
    """What a reader sees as text."""
    body = html[html.index("<body>") : html.index("</main>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", body).replace("&nbsp;", " "))


def test_every_chart_and_every_trial_is_there() -> None:
    html = page(twenty_settings())
    assert set(figures(html)) == CHARTS
    assert html.count("<tr class=") == 61
    said = words(html)
    assert "Best setting: lora_rate 0.8, nfz_rate 0.2" in said
    assert "finished / stopped / failed30 / 30 / 1" in said
    assert re.search(r"(Sure|Likely|Open): it is 0\.\d{4} above the runner-up", said)
    assert "Clearly at work: lora_rate" in said
    assert "after 1 epoch" in said


def test_what_trials_say_is_text_never_markup() -> None:
    html = page(twenty_settings())
    assert "node &lt;b&gt;lost&lt;/b&gt; &amp; gone" in html
    evil = search(truth, settings(loss=["</script><img src=x>", "$plotly"]), 0.001)
    html = page(evil)
    assert "<img" not in html[html.index("</script>") :]
    assert html.count('id="figures"') == 1
    assert len(figures(html)) == 9


@pytest.mark.parametrize(
    ("rows", "charts", "said"),
    [
        ([row(settings()[0], 0.7)], {"curves"}, "No other trial has a score"),
        (
            [row(settings()[0], 0.7), *(failed(s) for s in settings()[1:4])],
            {"curves"},
            "1 / 0 / 3",
        ),
        (search(truth, settings()[:3]), FEW, "Not known how sure"),
        (search(truth, settings()[:3]), FEW, "3 settings are too few for parameters head_width"),
        (search(truth, settings(widths=(0,)), 0.01), CHARTS - {"widths"}, "Only one head width"),
        (search(truth, settings(), 0.01), CHARTS, "No seed was repeated. In place"),
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


def test_a_winner_by_one_lucky_seed_is_said_to_be_one() -> None:
    first, second = settings()[:2]
    rows = [row(first, 0.74), row(second, 0.73), row(second, 0.729, 1), row(first, 0.70, 1)]
    assert "Open: on the mean of its runs it is 0.0095 below" in words(page(rows))


def test_shares_of_the_rows_are_never_mixed() -> None:
    rows = on_shares(search(truth, settings(), 0.001, seeds=2), 0.25, keep=12)
    said = words(page(rows))
    assert "began on 25 % of the training rows, the best went on to 100 %" in said
    best = np.mean([r["best"] for r in rows if r["setting"] == rows[0]["setting"]][:2])
    assert f"validation cosine {best:.4f}, mean of 2 seeds" in said
    assert f"From {len(settings())} settings after 4 epochs; fitted" in said
    assert "their order after 4 epochs on 25 % of the training rows agrees" in said
    # 54 settings twice, a quarter of the rows each, and 12 of 108 once on all.
    assert "share of training all to the end36 %" in said


def test_no_score_no_page() -> None:
    with pytest.raises(TooFew, match="No trial has a score"):
        page([failed(settings()[0])])


def browse(folder: Path, html: str) -> tuple[str, list[str]]:
    """The page's elements once it is drawn, and what the console said."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no Chromium here: apt-get install chromium")
    (folder / "page.html").write_text(html)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"]
    quiet = ["--disable-background-networking", "--no-first-run", f"--user-data-dir={folder}/u"]
    run = subprocess.run(
        [chromium, *options, *quiet, "--window-size=800,900", "--virtual-time-budget=4000",
         "--enable-logging=stderr", "--dump-dom", str(folder / "page.html")],
        capture_output=True, text=True, timeout=90, check=True,
        env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    said = [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
    return run.stdout, [line for line in said if "GL Driver Message" not in line]


def test_the_page_draws_every_chart_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
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
    found = dict(re.findall(r'data-(\w+)="(\w+)"', re.search(r"<body[^>]*>", shown)[0]))  # type: ignore[index]
    assert found.pop("asked") == "0"
    assert found.pop("first") == "failed"  # sorted by epochs, the fewest first
    assert set(found) == CHARTS
    assert all(int(count) > 0 for count in found.values()), found


def test_the_page_forbids_requests(tmp_path: Path) -> None:
    asks = '<img src="http://127.0.0.1:9/x.png"></body>'
    _, console = browse(tmp_path, page(search(truth, settings()[:3])).replace("</body>", asks))
    assert len(console) == 1
    assert "Content Security Policy" in console[0]
