"""The progress that a search shows while it runs."""

import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planned_trials import INPUTS, keep, search_of
from rich.console import Console

from img2prompt.search import watch
from img2prompt.search.budget import Budget
from img2prompt.search.propose import ListSearcher
from img2prompt.search.schedule import SearchScheduler
from img2prompt.search.space import Setting
from img2prompt.search.trials import TrialJob, TrialOutcome
from img2prompt.search.watch import SearchWatch

NAMES = ("one", "two", "three", "four")


class Course:
    """A search of four trials, whose events are sent by hand."""

    def __init__(self, folder: Path, max_hours: float = 0.0) -> None:
        config = search_of(max_hours=max_hours)
        self.jobs = {
            n: TrialJob(config.base.replace({"name": n}), INPUTS, f"{folder}/{n}") for n in NAMES
        }
        budget = Budget(max_hours)
        self.scheduler = SearchScheduler(config, budget, dict.fromkeys(NAMES, 1.0), {})
        self.searcher = ListSearcher(dict.fromkeys(NAMES, Setting(0.1, 0.2, 0)), budget)
        self.watch = SearchWatch("mine", budget, flop=4 * 9 * 1e12)
        past = {"one": TrialOutcome("finished", [row(epoch, 0.5) for epoch in range(1, 10)])}
        flop = dict.fromkeys(NAMES, 1e12)
        self.watch.add_trials(self.jobs, flop, self.searcher, self.scheduler, past)

    def send(self, event: str, name: str, **facts: Any) -> None:
        trial = SimpleNamespace(config={"name": name}, trial_id=name)
        if event == "start":
            self.searcher.suggest(name)
            self.scheduler.on_trial_add(None, trial)
        if "result" in facts:
            epochs = range(1, facts["result"]["epoch"] + 1)
            keep(self.jobs[name], [row(epoch, 0.1) for epoch in epochs][-1:])
            self.scheduler.on_trial_result(None, trial, facts["result"])
        getattr(self.watch, f"on_trial_{event}")(0, [], trial, **facts)

    def drawn(self) -> str:
        page = io.StringIO()
        Console(file=page, width=100).print(self.watch._table())
        return page.getvalue()


def row(epoch: int, score: float) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 0.1, "val_cosine": score, "rows_per_second": 120.0}


def lines(page: str) -> list[list[str]]:
    """Return the cells of the drawn table's rows."""
    rows = [line for line in page.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in rows]


def test_the_table_has_trials_rungs_rates_and_hours(tmp_path: Path) -> None:
    course = Course(tmp_path, max_hours=3)
    for name in ("two", "three"):
        course.send("start", name)
    course.send("result", "two", result=row(1, 0.7))
    course.send("result", "three", result=row(1, 0.4))
    course.send("complete", "three")
    page = course.drawn()
    assert lines(page) == [
        ["two", "running", "1", "0.7000", "120"],
        ["one", "finished", "9", "0.5000", "120"],
        ["three", "stopped", "1", "0.4000", "120"],
    ]
    text = " ".join(page.split())
    assert "1 running, 1 finished, 0 paused, 1 stopped, 0 failed, 2 waiting" in text
    assert "best 0.7000 two" in text
    assert "rung 1: 2 trials, 0.6000 or more continue" in text
    assert "120 images/s" in text
    assert "1 device-hours spent, at most 2 left" in text, "half an hour for each of two epochs"


def test_the_table_shows_paused_and_failed_trials(tmp_path: Path) -> None:
    course = Course(tmp_path)
    course.send("start", "two")
    course.send("result", "two", result=row(1, 0.7))
    course.send("complete", "two")
    course.send("start", "three")
    course.send("error", "three")
    states = {cells[0]: cells[1] for cells in lines(course.drawn())}
    assert states == {"one": "finished", "two": "paused", "three": "failed"}


def test_without_a_terminal_epochs_are_lines_of_the_log(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(watch.sys, "stderr", io.StringIO())
    course = Course(tmp_path)
    with caplog.at_level(logging.INFO), course.watch:
        course.send("start", "two")
        course.send("result", "two", result=row(1, 0.7))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("search: two, epoch 1: 0.7000; 1 running, 1 finished")
    assert "0.5 device-hours spent, at most 1.3 left" in line, "26 epochs more at the rate of 10"


@pytest.mark.parametrize("width", [60, 120])
def test_on_a_terminal_the_table_is_drawn_in_place(tmp_path, monkeypatch, caplog, width) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(watch.sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    course = Course(tmp_path)
    with caplog.at_level(logging.INFO), course.watch:
        course.send("start", "two")
        course.send("result", "two", result=row(1, 0.7))
    assert caplog.records == []
    assert "\x1b[" in terminal.getvalue()
    assert "best 0.7000 two" in terminal.getvalue()
