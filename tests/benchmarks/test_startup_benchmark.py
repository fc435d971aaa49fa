"""Run the benchmark of starts on a tiny size; the published figures are measured by hand."""

import pytest
import startup


@pytest.mark.benchmark
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_small_jobs_run_without_ray(capsys: pytest.CaptureFixture) -> None:
    measured = startup.run(startup.Options(prompts=100, pictures=2))
    for (_, mode), seconds in measured.items():
        assert seconds["ray"] == (mode == "through Ray")
    for job in ("train", "evaluate", "predict"):
        assert measured[job, "in process"]["total"] < measured[job, "through Ray"]["total"]
    assert "train, in process" in capsys.readouterr().out


def test_phases_are_the_seconds_between_marks() -> None:
    marks = {"began": 1, "imported": 3, "connected": 7, "worked": 8, "ended": 8.5, "ray": True}
    assert startup.phases(marks) == {
        "imports": 2,
        "start": 4,
        "work": 1,
        "end": 0.5,
        "total": 7.5,
        "ray": 1,
    }
