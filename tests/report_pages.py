"""Helpers that read a report's page: its text, its charts, and what a browser makes of it."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

HOSTILE = [
    "</script><script>document.title='run'</script>",
    "<img src=x onerror=document.title='run'>",
    "\"quoted\" 'single' `back` &amp; & {{ 7 * 7 }} $plotly",
    "\N{RIGHT-TO-LEFT OVERRIDE}olleh\N{RIGHT-TO-LEFT MARK} \N{HEBREW LETTER ALEF}",
]
"""Names with markup, quotes and right-to-left marks."""


def figures(html: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)
    assert match
    return json.loads(match[1])


def words(html: str) -> str:
    """Return the text of the page as a reader sees it."""
    parts: list[str] = []
    parser = HTMLParser()
    parser.handle_data = parts.append  # type: ignore[method-assign]
    parser.feed(html[html.index("<body>") : html.index("</main>")])
    return re.sub(r"\s+", " ", "".join(parts))


def browse(folder: Path, html: str) -> tuple[str, list[str]]:
    """Return the elements of the page once it is drawn, and the messages of the console."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("needs Chromium: apt-get install chromium")
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
