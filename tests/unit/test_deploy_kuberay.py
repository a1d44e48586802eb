"""The manifests for Kubernetes, held against the schemas of KubeRay that tests/data/kuberay keeps."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from medr3.config import load

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
KINDS = {"raycluster.yaml": "rayclusters", "rayjob.yaml": "rayjobs", "rayservice.yaml": "rayservices"}


def strict(schema: Any) -> Any:
    """As `kubectl --validate=strict` reads it: a field that is not named is a mistake, where Kubernetes itself would drop it."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    read = {name: strict(value) for name, value in schema.items()}
    if read.get("x-kubernetes-int-or-string"):
        read.pop("anyOf", None)
        read["type"] = ["integer", "string"]
    named = isinstance(read.get("properties"), dict) and read.get("type") == "object"
    if named and "additionalProperties" not in read and not read.get("x-kubernetes-preserve-unknown-fields"):
        read["additionalProperties"] = False
    return read


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def one(name: str) -> dict[str, Any]:
    return next(each for each in documents(name) if each["apiVersion"] == "ray.io/v1")


def schema(name: str) -> Any:
    found = strict(json.loads(gzip.decompress((ROOT / "tests/data/kuberay" / f"{KINDS[name]}.json.gz").read_bytes())))
    found["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which the schema leaves open
    return found


def clusters() -> dict[str, dict[str, Any]]:
    return {
        "raycluster.yaml": one("raycluster.yaml")["spec"],
        "rayjob.yaml": one("rayjob.yaml")["spec"]["rayClusterSpec"],
        "rayservice.yaml": one("rayservice.yaml")["spec"]["rayClusterConfig"],
    }


@pytest.mark.parametrize("name", KINDS)
def test_kuberay_takes_it(name: str) -> None:
    checked = jsonschema.Draft202012Validator(schema(name))
    assert [f"{'/'.join(map(str, error.path))}: {error.message}" for error in checked.iter_errors(one(name))] == []


@pytest.mark.parametrize("name", KINDS)
def test_the_check_would_find_a_slip(name: str) -> None:
    checked = jsonschema.Draft202012Validator(schema(name))
    slipped = one(name)
    slipped["spec"]["rayVersoin"] = "2"
    assert not checked.is_valid(slipped)


def test_a_retried_job_runs_on_the_cluster_of_the_manifest_and_resumes() -> None:
    job = one("rayjob.yaml")["spec"]
    assert job["rayClusterSpec"] == one("raycluster.yaml")["spec"]
    assert job["backoffLimit"] > 0 and job["shutdownAfterJobFinishes"]
    program, command, path, *rest = shlex.split(job["entrypoint"])
    assert (program, command, rest[:2]) == ("medr3", "train", ["--resume", "auto"])
    config = load(ROOT / path, rest[2:])
    assert config.run.placement == "groups" and config.run.folder.is_relative_to("/shared")
    patience = int(yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert patience >= config.run.stall_timeout_s + config.learner.step_timeout_s
    learner = next(group for group in job["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "learner")
    limits = learner["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) >= config.learner.workers * config.learner.gpus_per_worker


@pytest.mark.parametrize("name", KINDS)
def test_every_pod_has_shared_memory_shared_storage_and_time_to_leave(name: str) -> None:
    spec = clusters()[name]
    assert spec["authOptions"]["mode"] == "token"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/dev/shm", "/shared"} <= mounted
        memory = next(volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        assert memory["medium"] == "Memory" and memory["sizeLimit"]
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if hook:
            deadline = int(re.search(r"--deadline (\d+)", hook[-1])[1])  # type: ignore[index]
            assert deadline + 20 <= pod["terminationGracePeriodSeconds"], "Ray is stopped before the pod is killed"


def test_the_groups_are_those_that_the_code_asks_for() -> None:
    groups = {group["groupName"]: group for group in one("raycluster.yaml")["spec"]["workerGroupSpecs"]}
    assert {name: group["resources"] for name, group in groups.items()} == {
        name: {name: "1"} for name in ("learner", "rollout", "retrieval")
    }
    assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in groups.values())
    assert groups["learner"]["priority"] > groups["rollout"]["priority"]
    assert one("raycluster.yaml")["spec"]["autoscalerOptions"]["version"] == "v2"
    hooks = [group["template"]["spec"]["containers"][0].get("lifecycle") for group in groups.values()]
    assert [hook is not None for hook in hooks] == [False, True, True], "what can move is drained; the learner cannot move"


def test_serve_takes_the_retrieval_application_and_finds_its_code() -> None:
    from importlib import import_module

    from ray.serve.schema import ServeDeploySchema

    text = one("rayservice.yaml")["spec"]["serveConfigV2"]
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    module, _, function = application.import_path.partition(":")
    build = getattr(import_module(module), function)
    with pytest.raises(ValueError, match="index and http_token_file must be set"):
        build({})
    bound = build(application.args)
    assert bound is not None
    served = clusters()["rayservice.yaml"]["workerGroupSpecs"]
    assert [group["resources"] for group in served] == [{"retrieval": "1"}]
    assert all(each.ray_actor_options.resources == {"retrieval": 0.001} for each in application.deployments)


def test_budgets_of_disruption_select_pods_that_there_are() -> None:
    labels = [
        group["template"]["metadata"]["labels"]
        for spec in clusters().values() for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    ]  # fmt: skip
    budgets = [each for each in documents("base.yaml") if each["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == 3
    for budget in budgets:
        selector = budget["spec"]["selector"]
        wanted = selector.get("matchLabels", {}).get("medr3/group") or selector["matchExpressions"][0]["values"]
        assert any(label["medr3/group"] in ([wanted] if isinstance(wanted, str) else wanted) for label in labels)


def test_the_image_is_built_from_what_there_is() -> None:
    text = (ROOT / "deploy/Containerfile").read_text(encoding="utf-8")
    assert "make venv EXTRA=${EXTRA}" in text and "USER ray" in text
    images = {
        container["image"]
        for spec in clusters().values() for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        for container in group["template"]["spec"]["containers"]
    }  # fmt: skip
    assert images == {"medr3:0.1.0"}
