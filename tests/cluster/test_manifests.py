"""Check manifests against the schemas of KubeRay and Ray, and against each other."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KUBERNETES = "1.32"
JOBS = ["demo", "prepare", "features", "train", "search"]
VMS = ["aws.yaml", "gcp.yaml"]


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
        "RayCluster": crd_validator("ray.io_rayclusters.yaml"),
        "RayJob": crd_validator("ray.io_rayjobs.yaml"),
    }


@pytest.fixture(scope="module")
def launcher_validator() -> jsonschema.protocols.Validator:
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    return jsonschema.Draft7Validator(json.loads(schema.read_text()))


def errors(validator: jsonschema.protocols.Validator, manifest: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@pytest.fixture(scope="module")
def cluster_spec() -> dict[str, Any]:
    return load(CLUSTER / "kuberay" / "base" / "raycluster.yaml")["spec"]


def render(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `kubectl apply -k` would create, by kind."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    command = ["kubectl", "kustomize", str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {manifest["kind"]: manifest for manifest in yaml.load_all(text, LOADER)}


def compose(folder: Path, components: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the base with these components, as a user's own kustomization combines them."""
    kuberay = os.path.relpath(CLUSTER / "kuberay", folder)
    own = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{kuberay}/base"],
        "components": [f"{kuberay}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(own))
    return render(folder)


def groups_of(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the head's group and those of the workers, by name."""
    return {"head": spec["headGroupSpec"]} | {g["groupName"]: g for g in spec["workerGroupSpecs"]}


def check(manifests: dict[str, dict[str, Any]], validators) -> None:
    """Check each manifest by the schemas of KubeRay, or by those of Kubernetes."""
    for kind, manifest in manifests.items():
        if kind in validators:
            assert errors(validators[kind], manifest) == []
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    spec = manifests.get("RayCluster", {}).get("spec")
    spec = spec or manifests["RayJob"]["spec"]["rayClusterSpec"]
    for name, group in groups_of(spec).items():
        metadata = {"name": name} | group["template"].get("metadata", {})
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        kubernetes_validate.validate(
            pod | {"spec": group["template"]["spec"]}, KUBERNETES, strict=True
        )


@pytest.mark.parametrize("folder", ["base", *JOBS])
def test_kuberay_and_kubernetes_accept_each_folder(folder, validators) -> None:
    manifests = render(CLUSTER / "kuberay" / folder)
    assert ("RayJob" in manifests) == (folder in JOBS)
    assert ("RayCluster" in manifests) == (folder not in JOBS)
    check(manifests, validators)


@pytest.mark.parametrize(
    "components",
    [
        ["spot", "gke", "gcs", "redis"],
        ["spot", "eks", "s3"],
        ["aks", "s3", "job"],
        ["spot", "gke", "gcs", "redis", "job", "kueue"],
    ],
)
def test_components_combine(components, validators, tmp_path) -> None:
    check(compose(tmp_path, components), validators)


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
    manifest = json.loads(json.dumps(load(CLUSTER / "kuberay" / "base" / "raycluster.yaml")))
    node = manifest
    for key in path.split("."):
        node = node[int(key)] if isinstance(node, list) else node[key]
    key = next(iter(node))
    node[key + "z"] = node.pop(key)
    lines = errors(validators["RayCluster"], manifest)
    assert any(f"'{key}z' was unexpected" in line for line in lines), lines


@pytest.mark.parametrize(("key", "value"), [("maxReplicas", "two"), ("labels", {"pool": 1})])
def test_a_value_of_another_type_is_refused(key, value, validators) -> None:
    manifest = load(CLUSTER / "kuberay" / "base" / "raycluster.yaml")
    manifest["spec"]["workerGroupSpecs"][0][key] = value
    assert len(errors(validators["RayCluster"], manifest)) == 1


@pytest.mark.parametrize("folder", JOBS)
def test_a_job_runs_a_job_file_and_writes_to_the_shared_volume(folder, cluster_spec) -> None:
    manifests = render(CLUSTER / "kuberay" / folder)
    words = shlex.split(manifests["RayJob"]["spec"]["entrypoint"])
    assert words[0] == "python"
    assert (ROOT / Path(words[1]).relative_to("/app")).is_file()
    out = words[words.index("--out") + 1]
    for group in groups_of(cluster_spec).values():
        pod = group["template"]["spec"]
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        claims = {v["name"]: v.get("persistentVolumeClaim") for v in pod["volumes"]}
        claim = claims[mounts[f"/{Path(out).parts[1]}"]]
        storage = load(CLUSTER / "kuberay" / "storage" / "storage.yaml")
        assert claim == {"claimName": storage["metadata"]["name"]}


def test_the_driver_of_a_job_has_a_group_to_run_in(cluster_spec) -> None:
    spec = load(CLUSTER / "kuberay" / "components" / "job" / "rayjob.yaml")["spec"]
    resources = json.loads(spec["entrypointResources"])
    groups = [
        g for g in cluster_spec["workerGroupSpecs"] if set(resources) <= set(g.get("resources", {}))
    ]
    assert [g["groupName"] for g in groups] == ["driver"]
    assert "tolerations" not in groups[0]["template"]["spec"], "drivers stay off spot machines"


def test_a_job_gets_the_cluster_that_the_components_made(tmp_path) -> None:
    job = compose(tmp_path, ["spot", "gke", "job"])["RayJob"]["spec"]
    cluster = compose(tmp_path, ["spot", "gke"])["RayCluster"]["spec"]
    assert job["rayClusterSpec"] == cluster
    tolerations = groups_of(cluster)["cpu"]["template"]["spec"]["tolerations"]
    assert "cloud.google.com/gke-spot" in {toleration["key"] for toleration in tolerations}


@pytest.mark.parametrize("folder", ["base", *JOBS])
def test_deleting_a_cluster_or_job_keeps_the_data(folder) -> None:
    assert "PersistentVolumeClaim" not in render(CLUSTER / "kuberay" / folder)
    assert set(render(CLUSTER / "kuberay" / "storage")) == {"PersistentVolumeClaim"}


def test_a_group_has_resources_or_start_parameters_for_them(cluster_spec) -> None:
    # KubeRay refuses both, and timeouts where its autoscaler is off; its schema does not show it.
    for group in groups_of(cluster_spec).values():
        parameters = {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"])
        assert not (group.get("resources") and parameters)


def test_kueue_gets_a_cluster_of_fixed_size(tmp_path) -> None:
    job = compose(tmp_path, ["job", "kueue"])["RayJob"]
    assert "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
    spec = job["spec"]["rayClusterSpec"]
    assert (job["spec"]["suspend"], spec["enableInTreeAutoscaling"]) == (True, False)
    assert not any("idleTimeoutSeconds" in group for group in spec["workerGroupSpecs"])
    assert_ceilings(spec, "replicas")


def test_the_cluster_requires_a_token_and_keeps_work_off_the_head(cluster_spec) -> None:
    assert cluster_spec["authOptions"] == {"mode": "token"}
    assert cluster_spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_pods_have_no_rights_that_they_do_not_need(cluster_spec) -> None:
    for group in groups_of(cluster_spec).values():
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_rules_of_network_and_disruption_select_the_pods(cluster_spec) -> None:
    for group in groups_of(cluster_spec).values():
        labels = group["template"]["metadata"]["labels"]
        policy = load(CLUSTER / "kuberay" / "base" / "network.yaml")["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    budget = load(CLUSTER / "kuberay" / "base" / "disruption.yaml")["spec"]["selector"]
    assert budget["matchLabels"] == labels | {"ray.io/node-type": "head"}


def test_only_metrics_and_dashboard_are_open_to_other_pods() -> None:
    policy = load(CLUSTER / "kuberay" / "base" / "network.yaml")["spec"]
    own, *others = policy["ingress"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    ports = [port["port"] for rule in others for port in rule["ports"]]
    assert set(ports) == {8265, 8080, 44217, 44227}


def test_the_object_store_has_room_in_shared_memory(cluster_spec) -> None:
    for group in groups_of(cluster_spec).values():
        pod = group["template"]["spec"]
        (mount,) = [
            m["name"] for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == "/dev/shm"
        ]
        (volume,) = [v["emptyDir"] for v in pod["volumes"] if v["name"] == mount]
        memory = pod["containers"][0]["resources"]["limits"]["memory"]
        share = int(volume["sizeLimit"].removesuffix("Gi")) / int(memory.removesuffix("Gi"))
        assert volume["medium"] == "Memory"
        assert 0.3 < share < 0.4, "Ray takes 30 % of the memory for its object store"


def test_requests_equal_limits_and_groups_start_empty(cluster_spec) -> None:
    for group in cluster_spec["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        assert group["minReplicas"] == 0 < group["maxReplicas"]


def assert_ceilings(spec: dict[str, Any], size: str) -> None:
    """Check the ceilings that jobs read against the sums of the groups at their `size`."""
    groups = groups_of(spec)
    cpus = gpus = 0
    for name in ("cpu", "gpu"):
        limits = groups[name]["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += groups[name][size] * int(limits["cpu"])
        gpus += groups[name][size] * int(limits.get("nvidia.com/gpu", 0))
    ceilings = [
        {"name": "IMG2PROMPT_MAX_CPUS", "value": str(cpus)},
        {"name": "IMG2PROMPT_MAX_GPUS", "value": str(gpus)},
    ]
    for name in ("head", "driver"):
        assert groups[name]["template"]["spec"]["containers"][0]["env"] == ceilings


def test_declared_ceilings_are_the_sums_of_the_groups(cluster_spec) -> None:
    assert_ceilings(cluster_spec, "maxReplicas")


@pytest.mark.parametrize("name", [*VMS, "pretend.yaml"])
def test_the_cluster_launcher_accepts_the_file(name, launcher_validator) -> None:
    manifest = load(CLUSTER / name)
    assert errors(launcher_validator, manifest) == []
    manifest["available_node_types"][manifest["head_node_type"]]["max_worker"] = 1
    assert len(errors(launcher_validator, manifest)) == 1


@pytest.mark.parametrize("name", VMS)
def test_ray_prepares_and_accepts_the_machines(name) -> None:
    config = prepare_config(load(CLUSTER / name))
    validate_config(config)
    assert config["setup_commands"] == [], "Ray's defaults would install another Ray"


@pytest.mark.parametrize("name", VMS)
def test_declared_ceilings_are_the_sums_of_the_machines(name) -> None:
    manifest = load(CLUSTER / name)
    workers = [t for t in manifest["available_node_types"].values() if "max_workers" in t]
    sums = {
        n: sum(t["max_workers"] * t["resources"].get(n, 0) for t in workers) for n in ("CPU", "GPU")
    }
    assert manifest["max_workers"] == sum(t["max_workers"] for t in workers)
    for name, value in sums.items():
        assert f"-e IMG2PROMPT_MAX_{name}S={value}" in manifest["docker"]["run_options"]


@pytest.mark.parametrize("name", VMS)
def test_machines_require_a_token_and_get_it(name) -> None:
    manifest = load(CLUSTER / name)
    assert "-e RAY_AUTH_MODE=token" in manifest["docker"]["run_options"]
    assert "~/.ray/auth_token" in manifest["file_mounts"]


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_the_lock_of_the_image_fits_the_dependencies(kind) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (CLUSTER / f"requirements-{kind}.txt").read_text().splitlines()
    locked = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    assert all(str(requirement.specifier).startswith("==") for requirement in locked.values())
    for line in [*project["dependencies"], *project["optional-dependencies"][kind]]:
        wanted = Requirement(line)
        (version,) = locked[canonicalize_name(wanted.name)].specifier
        assert wanted.specifier.contains(version.version), f"{line}, but {version} is locked"


def test_one_version_of_ray_everywhere(cluster_spec) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = [
        re.search(r"==(.+)", d)[1] for d in project["dependencies"] if d.startswith("ray[")
    ]
    assert cluster_spec["rayVersion"] == version
    assert f"BASE=rayproject/ray:{version}-py311-" in (CLUSTER / "Dockerfile").read_text()


def test_one_image_everywhere(cluster_spec) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    image = f"{project['name']}:{project['version']}"
    groups = groups_of(cluster_spec).values()
    pods = [group["template"]["spec"]["containers"][0]["image"] for group in groups]
    assert {*pods, *(load(CLUSTER / name)["docker"]["image"] for name in VMS)} == {image}
    assert f"-t {image} ." in (CLUSTER / "Dockerfile").read_text()


def test_the_readme_names_files_that_exist() -> None:
    text = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"(?:cluster|jobs)/[\w./-]*\.(?:py|yaml)", text))
    assert {"cluster/local_nodes.py", "cluster/aws.yaml", "jobs/demo.py"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []
