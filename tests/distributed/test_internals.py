"""Private APIs of Ray and DeepSpeed: run this file first after an upgrade. It needs no cluster.

A failure names what is missing and in which version. The last tests keep private names out of all
other files.
"""

import ast
import importlib
import inspect
import logging
import os
from operator import attrgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.train import PreemptionInfo
from ray.tune.schedulers import ASHAScheduler

from img2prompt.distributed import internals

ROOT = Path(__file__).parents[2]
OWNERS = {
    "img2prompt/distributed/internals.py": "ray",
    "img2prompt/train/engines/deepspeed.py": "deepspeed",
}
"""The only file with private names of a library."""
PRIVATE = [
    "ray._private.worker:connect",
    "ray._raylet:AuthenticationTokenLoader.instance",
    "ray._raylet:Config.initialize",
    "ray._raylet:PlacementGroupID",
    "ray.train.v2._internal.execution.context:logger.setLevel",
    "ray.train.v2._internal.execution.context:get_train_context",
    "ray.train.v2._internal.execution.callback:WorkerGroupCallback.after_worker_group_start",
    "ray.train.v2._internal.execution.callback:ControllerCallback.after_controller_state_update",
    "ray.train.v2._internal.execution.controller.state:ResizingState",
    "ray.train.v2._internal.execution.worker_group:WorkerGroup.execute",
    "ray.train.v2.api.config:FailureConfig",
    "ray.train.v2.api.config:LoggingConfig",
    "ray.train.v2.api.config:RunConfig",
    "ray.train.v2.api.config:ScalingConfig",
    "ray.autoscaler._private.fake_multi_node.node_provider:FakeMultiNodeProvider",
]
VARIABLES = {
    "RAY_AIR_NEW_OUTPUT": "ray.tune.experimental.output",
    "RAY_CHDIR_TO_TRIAL_DIR": "ray.train.constants",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": "ray._private.runtime_env.constants",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "ray.train.v2._internal.constants",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "ray.train.v2._internal.constants",
    "RAY_gcs_server_port_wait_time_s": "ray._private.node",
    "TUNE_DISABLE_SIGINT_HANDLER": "ray.tune.tune",
}
"""Environment variables that img2prompt sets or reads, and the modules of Ray that know them."""


def module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.fail(f"ray {ray.__version__} has no {name}: {error}; see internals.py")


@pytest.mark.parametrize("name", PRIVATE)
def test_ray_has_the_private_name(name: str) -> None:
    home, attribute = name.split(":")
    try:
        attrgetter(attribute)(module(home))
    except AttributeError:
        pytest.fail(f"ray {ray.__version__} has no {attribute} in {home}; see internals.py")


@pytest.mark.parametrize("name", VARIABLES)
def test_ray_knows_the_environment_variable(name: str) -> None:
    home = module(VARIABLES[name])
    assert name in inspect.getsource(home), f"ray {ray.__version__}: {home.__name__}"


def test_the_core_follows_the_authentication_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    raylet = module("ray._raylet")
    before = raylet.get_authentication_mode()
    try:
        for mode, name in (("token", "TOKEN"), ("disabled", "DISABLED")):
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
            internals.apply_authentication_settings()
            expected = getattr(raylet.AuthenticationMode, name)
            assert raylet.get_authentication_mode() == expected, f"ray {ray.__version__}"
    finally:
        monkeypatch.undo()
        internals.apply_authentication_settings()
    assert raylet.get_authentication_mode() == before


def test_the_token_of_the_environment_replaces_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader = module("ray._raylet").AuthenticationTokenLoader.instance()
    try:
        for token in ("a" * 64, "b" * 64):
            monkeypatch.setenv("RAY_AUTH_MODE", "token")
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
            internals.apply_authentication_settings()
            assert loader.get_raw_token() == token, f"ray {ray.__version__}"
    finally:
        monkeypatch.undo()
        internals.apply_authentication_settings()


def test_ray_init_reads_the_option_of_the_session_folder() -> None:
    (option,) = internals.session_folder("/tmp/folder")
    assert f'kwargs.pop("{option}"' in inspect.getsource(ray.init), f"ray {ray.__version__}"


def test_a_placement_group_has_the_id_it_was_made_from() -> None:
    size = len(module("ray._raylet").PlacementGroupID.nil().hex())
    hex_id = ("0123456789abcdef" * 4)[:size]
    group = internals.placement_group_from_id(hex_id)
    assert group.id.hex() == hex_id, f"ray {ray.__version__}"
    assert not group.is_empty


def test_a_worker_sees_the_notice_that_its_node_will_be_taken_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = module("ray.train.v2._internal.execution.context")
    fields = context.TrainContext.__dataclass_fields__
    assert "preemption_context" in fields, f"ray {ray.__version__}: {sorted(fields)}"
    preemption = module("ray.train.v2._internal.execution.preemption").PreemptionContext()
    own = SimpleNamespace(preemption_context=preemption, get_world_rank=lambda: 0)
    monkeypatch.setattr(context, "_train_context", own)
    assert internals.preemption_notice() is None
    notice = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [0]})
    worker = module("ray.train.v2._internal.execution.worker_group.worker").RayTrainWorker
    worker.mark_preempt(None, notice)  # as Ray Train's watcher does
    assert internals.preemption_notice() == notice, f"ray {ray.__version__}"


def test_reports_of_workers_are_not_logged() -> None:
    logger = module("ray.train.v2._internal.execution.context").logger
    before = logger.level
    try:
        internals.quieten_worker_reports()
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
    finally:
        logger.setLevel(before)


def test_ray_train_takes_the_callback_and_knows_it_by_its_base_classes(tmp_path: Path) -> None:
    callback = internals.TrainCallback()
    config = internals.RunConfig(storage_path=str(tmp_path), callbacks=[callback])
    assert config.callbacks == [callback]
    base = module("ray.train.v2._internal.execution.callback")
    for kind in (base.WorkerGroupCallback, base.ControllerCallback):
        assert isinstance(callback, kind), f"ray {ray.__version__}: {kind}"
    hook = inspect.signature(callback.after_controller_state_update)
    assert [*hook.parameters] == ["previous_state", "current_state"], f"ray {ray.__version__}"


def test_only_a_change_of_the_number_of_workers_is_resizing() -> None:
    state = module("ray.train.v2._internal.execution.controller.state")
    decision = module("ray.train.v2._internal.execution.scaling_policy").ResizeDecision(
        num_workers=3, resources_per_worker={}
    )
    assert internals.is_resizing(state.ResizingState(scaling_decision=decision))
    assert not internals.is_resizing(state.RunningState())
    assert not internals.is_resizing(state.SchedulingState(scaling_decision=decision))


def test_rungs_of_asha_hold_the_scores_that_trials_reported() -> None:
    scheduler = ASHAScheduler(
        time_attr="epoch", metric="score", mode="max", grace_period=1, max_t=4, reduction_factor=2
    )
    runner: Any = None
    for name, scores in (("a", (0.1, 0.2)), ("b", (0.3,))):
        trial: Any = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(runner, trial)
        for epoch, score in enumerate(scores, 1):
            scheduler.on_trial_result(runner, trial, {"epoch": epoch, "score": score})
    rungs = internals.asha_rungs(scheduler)
    expected = [(1, {"a": 0.1, "b": 0.3}), (2, {"a": 0.2}), (4, {})]
    assert rungs == expected, f"ray {ray.__version__}"


def test_deepspeed_has_the_private_names() -> None:
    """Their behaviour is tested with real engines in tests/train/test_engines.py."""
    from img2prompt.train.engines.deepspeed import _import_deepspeed

    deepspeed = _import_deepspeed(torch.device("cpu"))
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    for owner, name in [
        (DeepSpeedEngine, "self.torch_autocast_z0_gradscaler ="),
        (DeepSpeedZeroOptimizer, "self._hp_optimizer_states_linked = False"),
        (DeepSpeedZeroOptimizer, "def _lazy_init_hp_params_optimizer_state(self)"),
        (DeepSpeedZeroOptimizer_Stage3, "self.fp32_partitioned_groups_flat ="),
    ]:
        source = inspect.getsource(owner)
        assert name in source, f"deepspeed {deepspeed.__version__}: {owner.__name__}"


def test_deepspeed_does_not_compile_an_all_reduce_for_cpus() -> None:
    from img2prompt.train.engines.deepspeed import _import_deepspeed

    deepspeed = _import_deepspeed(torch.device("cpu"))
    from deepspeed.comm.torch import build_shm_op

    assert build_shm_op() is None, f"deepspeed {deepspeed.__version__}"


def private_names(file: Path, library: str) -> list[str]:
    """Return private imports of `library` in a file, and private attributes of its objects."""
    tree = ast.parse(file.read_text())
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names.append(ast.unparse(node))
    return [name for name in names if is_private(name, library)]


def is_private(name: str, library: str) -> bool:
    root, *parts = name.split(".")
    hidden = [part for part in parts if part.startswith("_")]
    return root == library and (hidden not in ([], ["__version__"]) or "v2" in parts)


def test_private_names_are_recognised(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("import ray\nfrom ray.train.v2.api import config\nray._private.x\nray.a._b\n")
    assert private_names(file, "ray") == ["ray.train.v2.api.config", "ray._private.x",
                                          "ray.a._b", "ray._private"]  # fmt: skip
    assert private_names(file, "deepspeed") == []


@pytest.mark.parametrize(("owner", "library"), OWNERS.items())
def test_private_names_are_in_one_file_only(owner: str, library: str) -> None:
    files = [file for folder in ("img2prompt", "jobs", "cluster") for file in
             (ROOT / folder).rglob("*.py") if file != ROOT / owner]  # fmt: skip
    private = {str(file.relative_to(ROOT)): private_names(file, library) for file in files}
    assert {file: names for file, names in private.items() if names} == {}, f"use {owner}"


@pytest.mark.parametrize(("level", "used"), [(None, "fatal"), ("debug", "debug")])
def test_only_the_driver_of_a_local_cluster_logs_fatal_lines_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], level, used: str
) -> None:
    levels: list[str | None] = []

    def connect(*arguments: object) -> None:
        levels.append(os.environ.get(internals.LOG_LEVEL))
        os.write(2, b"about the variable\n")

    monkeypatch.delenv(internals.LOG_LEVEL, raising=False)
    if level:
        monkeypatch.setenv(internals.LOG_LEVEL, level)
    monkeypatch.setattr(internals.worker, "connect", connect)
    with internals.fatal_driver_logs():
        assert os.environ.get(internals.LOG_LEVEL) == level, "while Ray's processes start"
        internals.worker.connect("a node")
    assert internals.worker.connect is connect
    assert levels == [used]
    assert os.environ.get(internals.LOG_LEVEL) == level
    assert ("about the variable" in capfd.readouterr().err) == (level is not None)
