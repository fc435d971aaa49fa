"""A run on the workers of Ray Train, which replaces them when one dies."""

from typing import Any

from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from img2prompt.distributed.internals import (
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from img2prompt.distributed.placement import has_gpus
from img2prompt.train.health import StopRequestedError
from img2prompt.train.job import TrainJob, checkpoints
from img2prompt.train.preflight import worker_count
from img2prompt.train.ray_callbacks import own_callbacks, to_user_error
from img2prompt.train.ray_worker import run_ray_worker
from img2prompt.workspace import RunFolder, Stage


def fit(job: TrainJob, callbacks: list[Any]) -> None:
    """Train; `callbacks` are Ray Train's.

    Raises:
        StopRequestedError: the run was asked to stop, and is saved.
        UserError: a worker raised it.
    """
    try:
        result: Any = _trainer(job, callbacks).fit()
    except TrainingFailedError as error:
        raise to_user_error(error) from error
    if result.return_value:
        raise StopRequestedError(result.return_value)


def _trainer(job: TrainJob, callbacks: list[Any]) -> TorchTrainer:
    """Return Ray Train's trainer. Workers write their own checkpoints, unseen by it."""

    def work() -> Any:  # a str, which Ray Train returns although its annotations say None
        return run_ray_worker(job)

    use_gpu, engine, most = has_gpus(), job.config.engine, worker_count(job.config)
    return TorchTrainer(
        work,
        scaling_config=ScalingConfig(
            num_workers=(engine.min_workers, most) if engine.min_workers else most,
            elastic_resize_monitor_interval_s=engine.resize_seconds,
            use_gpu=use_gpu,
            resources_per_worker={"GPU": 1} if use_gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=Stage.TRAIN,
            storage_path=RunFolder(job.out).work,
            failure_config=FailureConfig(max_failures=-1),  # a callback limits them
            callbacks=[*callbacks, *own_callbacks(checkpoints(job.out))],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
