"""Schedulers keep what the checkpoint was trained for, and never share noise in a batch."""

import diffusers
import pytest

from img2prompt.config.generate import SamplingConfig
from img2prompt.errors import UserError
from img2prompt.generate.schedulers import CLASSES, build_scheduler, sampler_name

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OWN = diffusers.DDIMScheduler(
    beta_start=0.001, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction"
)


@pytest.mark.parametrize("name", CLASSES)
def test_a_scheduler_keeps_noise_schedule_and_prediction_type(name: str) -> None:
    scheduler = build_scheduler(SamplingConfig(scheduler=name), OWN)  # type: ignore[arg-type]
    assert sampler_name(scheduler) == name
    assert scheduler.config.prediction_type == "v_prediction"
    assert (scheduler.config.beta_start, scheduler.config.beta_end) == (0.001, 0.02)
    assert scheduler.config.beta_schedule == "scaled_linear"


def test_schedulers_that_do_not_fit_are_refused() -> None:
    assert build_scheduler(SamplingConfig(), OWN) is OWN
    with pytest.raises(UserError, match="scheduler is DEISMultistepScheduler, whose noise may"):
        build_scheduler(SamplingConfig(), diffusers.DEISMultistepScheduler())
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    assert sampler_name(build_scheduler(SamplingConfig(), flow)) == "flow_euler"
    with pytest.raises(UserError, match="is 'ddim'; allowed for a checkpoint with FlowMatchEuler"):
        build_scheduler(SamplingConfig(scheduler="ddim"), flow)
