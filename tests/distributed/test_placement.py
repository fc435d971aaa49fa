import logging
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from img2prompt.distributed import placement
from img2prompt.distributed.placement import (
    FEW_PICTURES,
    OWN_CLUSTER,
    cluster_is_named,
    connected,
    few_pictures,
    usable_cores,
)
from img2prompt.planning.nodes import node

IMPORTS = """
import sys
import img2prompt.predict.evaluate, img2prompt.predict.predict, img2prompt.predictors.build
import img2prompt.train.run, img2prompt.distributed.placement, img2prompt.prepare.prepared_data
print(*{"ray", "deepspeed", "sentence_transformers"} & sys.modules.keys())
"""


def test_jobs_that_may_run_without_ray_do_not_import_it() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("address", "own", "named"),
    [
        ("", "", False),
        ("10.0.0.1:6379", "", True),
        ("local", "", True),
        ("127.0.0.1:6379", "1", False),
    ],
)
def test_a_named_cluster_gets_all_work(monkeypatch, address: str, own: str, named: bool) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv(OWN_CLUSTER, own)
    assert cluster_is_named() == named
    assert few_pictures(FEW_PICTURES) != named
    assert not few_pictures(FEW_PICTURES + 1)


def test_cores_that_the_process_may_not_use_do_not_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
        assert node("this").cores == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_cluster_that_is_not_needed_is_not_started(monkeypatch) -> None:
    started = []

    @contextmanager
    def connect(**options):
        started.append(options)
        yield

    monkeypatch.setattr("img2prompt.distributed.cluster.connect", connect)
    with connected(False, dashboard=True):
        assert logging.getLogger("img2prompt").isEnabledFor(logging.INFO)
    assert started == []
    with connected(True, dashboard=True):
        assert started == [{"dashboard": True}]


def test_gpus_are_those_of_this_machine_without_a_cluster(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for available in (True, False):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        assert placement.has_gpus() == available
