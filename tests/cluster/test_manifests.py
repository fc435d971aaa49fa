"""Check manifests against the schemas of KubeRay and Ray, and against each other."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), LOADER)


def strict(schema: Any) -> Any:
    """Return the schema with unknown keys refused wherever it lists the known ones."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    lists_keys = closed.get("type") == "object" and isinstance(closed.get("properties"), dict)
    if lists_keys and not closed.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def crd_validator(name: str) -> jsonschema.protocols.Validator:
    path = SCHEMAS / name
    if not path.exists():
        pytest.skip(f"needs KubeRay's definitions in {SCHEMAS}")
    (served,) = [v for v in load(path)["spec"]["versions"] if v["name"] == "v1"]
    return jsonschema.Draft7Validator(strict(served["schema"]["openAPIV3Schema"]))


@pytest.fixture(scope="module")
def validators() -> dict[str, jsonschema.protocols.Validator]:
    return {
        "raycluster.yaml": crd_validator("ray.io_rayclusters.yaml"),
        "rayjob.yaml": crd_validator("ray.io_rayjobs.yaml"),
    }


@pytest.fixture(scope="module")
def launcher_validator() -> jsonschema.protocols.Validator:
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    return jsonschema.Draft7Validator(json.loads(schema.read_text()))


def errors(validator: jsonschema.protocols.Validator, manifest: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@pytest.fixture(scope="module")
def cluster_spec() -> dict[str, Any]:
    return load(CLUSTER / "kuberay" / "raycluster.yaml")["spec"]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_accepts_the_manifest(name, validators) -> None:
    assert errors(validators[name], load(CLUSTER / "kuberay" / name)) == []


@pytest.mark.parametrize(
    "path",
    [
        "spec",
        "spec.authOptions",
        "spec.autoscalerOptions",
        "spec.headGroupSpec",
        "spec.workerGroupSpecs.2",
        "spec.workerGroupSpecs.2.template.spec",
        "spec.workerGroupSpecs.2.template.spec.containers.0",
        "spec.workerGroupSpecs.2.template.spec.tolerations.0",
        "spec.workerGroupSpecs.2.template.spec.volumes.0.persistentVolumeClaim",
    ],
)
def test_a_misspelt_key_is_refused(path, validators) -> None:
    # Copied through JSON, because YAML anchors share parts.
    manifest = json.loads(json.dumps(load(CLUSTER / "kuberay" / "raycluster.yaml")))
    node = manifest
    for key in path.split("."):
        node = node[int(key)] if isinstance(node, list) else node[key]
    key = next(iter(node))
    node[key + "z"] = node.pop(key)
    lines = errors(validators["raycluster.yaml"], manifest)
    assert any(f"'{key}z' was unexpected" in line for line in lines), lines


@pytest.mark.parametrize(("key", "value"), [("maxReplicas", "two"), ("labels", {"pool": 1})])
def test_a_value_of_another_type_is_refused(key, value, validators) -> None:
    manifest = load(CLUSTER / "kuberay" / "raycluster.yaml")
    manifest["spec"]["workerGroupSpecs"][0][key] = value
    assert len(errors(validators["raycluster.yaml"], manifest)) == 1


def test_the_job_runs_a_job_file_and_writes_to_the_shared_volume(cluster_spec) -> None:
    spec = load(CLUSTER / "kuberay" / "rayjob.yaml")["spec"]
    python, script, option, out = shlex.split(spec["entrypoint"])
    assert (python, option) == ("python", "--out")
    assert (ROOT / Path(script).relative_to("/app")).is_file()
    for group in [cluster_spec["headGroupSpec"], *cluster_spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        claims = {v["name"]: v.get("persistentVolumeClaim") for v in pod["volumes"]}
        claim = claims[mounts[f"/{Path(out).parts[1]}"]]
        storage = load(CLUSTER / "kuberay" / "storage.yaml")
        assert claim == {"claimName": storage["metadata"]["name"]}


def test_the_driver_of_a_job_has_a_group_to_run_in(cluster_spec) -> None:
    spec = load(CLUSTER / "kuberay" / "rayjob.yaml")["spec"]
    resources = json.loads(spec["entrypointResources"])
    groups = [
        g for g in cluster_spec["workerGroupSpecs"] if set(resources) <= set(g.get("resources", {}))
    ]
    assert [g["groupName"] for g in groups] == ["driver"]
    assert "tolerations" not in groups[0]["template"]["spec"], "drivers stay off spot machines"


def test_both_manifests_have_the_same_cluster(cluster_spec) -> None:
    assert load(CLUSTER / "kuberay" / "rayjob.yaml")["spec"]["rayClusterSpec"] == cluster_spec


def test_the_cluster_requires_a_token_and_keeps_work_off_the_head(cluster_spec) -> None:
    assert cluster_spec["authOptions"] == {"mode": "token"}
    assert cluster_spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_requests_equal_limits_and_groups_start_empty(cluster_spec) -> None:
    for group in cluster_spec["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        assert group["minReplicas"] == 0 < group["maxReplicas"]


def test_declared_ceilings_are_the_sums_of_the_groups(cluster_spec) -> None:
    groups = {g["groupName"]: g for g in cluster_spec["workerGroupSpecs"]}
    cpus = gpus = 0
    for name in ("cpu", "gpu"):
        limits = groups[name]["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += groups[name]["maxReplicas"] * int(limits["cpu"])
        gpus += groups[name]["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    ceilings = [
        {"name": "IMG2PROMPT_MAX_CPUS", "value": str(cpus)},
        {"name": "IMG2PROMPT_MAX_GPUS", "value": str(gpus)},
    ]
    for group in (cluster_spec["headGroupSpec"], groups["driver"]):
        assert group["template"]["spec"]["containers"][0]["env"] == ceilings


@pytest.mark.parametrize("name", ["vm.yaml", "pretend.yaml"])
def test_the_cluster_launcher_accepts_the_file(name, launcher_validator) -> None:
    manifest = load(CLUSTER / name)
    assert errors(launcher_validator, manifest) == []
    manifest["available_node_types"][manifest["head_node_type"]]["max_worker"] = 1
    assert len(errors(launcher_validator, manifest)) == 1


def test_declared_ceilings_are_the_sums_of_the_machines() -> None:
    manifest = load(CLUSTER / "vm.yaml")
    workers = [t for t in manifest["available_node_types"].values() if "max_workers" in t]
    sums = {
        n: sum(t["max_workers"] * t["resources"].get(n, 0) for t in workers) for n in ("CPU", "GPU")
    }
    assert manifest["max_workers"] == sum(t["max_workers"] for t in workers)
    for name, value in sums.items():
        assert f"-e IMG2PROMPT_MAX_{name}S={value}" in manifest["docker"]["run_options"]


def test_machines_require_a_token_and_get_it() -> None:
    manifest = load(CLUSTER / "vm.yaml")
    assert "-e RAY_AUTH_MODE=token" in manifest["docker"]["run_options"]
    assert "~/.ray/auth_token" in manifest["file_mounts"]


def test_one_version_of_ray_everywhere(cluster_spec) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = [
        re.search(r"==(.+)", d)[1] for d in project["dependencies"] if d.startswith("ray[")
    ]
    assert cluster_spec["rayVersion"] == version
    assert f"FROM rayproject/ray:{version}-py311-" in (CLUSTER / "Dockerfile").read_text()


def test_one_image_everywhere(cluster_spec) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    image = f"{project['name']}:{project['version']}"
    groups = [cluster_spec["headGroupSpec"], *cluster_spec["workerGroupSpecs"]]
    pods = [group["template"]["spec"]["containers"][0]["image"] for group in groups]
    assert {*pods, load(CLUSTER / "vm.yaml")["docker"]["image"]} == {image}
    assert f"-t {image} ." in (CLUSTER / "Dockerfile").read_text()


def test_the_readme_names_files_that_exist() -> None:
    text = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"(?:cluster|jobs)/[\w./-]*\.(?:py|yaml)", text))
    assert {"cluster/local_nodes.py", "cluster/vm.yaml", "jobs/demo.py"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []
