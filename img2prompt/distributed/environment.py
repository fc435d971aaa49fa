"""Environment variables that Ray's core and Ray Train read."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from img2prompt.distributed.internals import apply_authentication_settings

TRAINING = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
"""Ray Train polls its workers for one report at a time, every two seconds by default, and short
epochs would wait for that. Train and Tune keep workers in the driver's working directory, so that
relative paths in configs, such as `--tower.weights DIR`, mean the same in workers."""


@contextmanager
def changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables that Ray's core reads, and restore the old values at the end."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    apply_authentication_settings()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        apply_authentication_settings()
