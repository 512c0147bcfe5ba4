"""Compose and Kubernetes files keep to their schemas; nothing is fetched for that."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
from kubernetes_validate import utils
from stacks import COMPOSE, KUBERNETES, OVERLAYS, kubernetes_objects, overlay_objects

OLDEST, NEWEST = "1.32", kubernetes_validate.latest_version()
# It reads and parses several megabytes of definitions for each object; once is enough.
utils.schema_contents = functools.cache(utils.schema_contents)
CUSTOM = {"keda.sh/v1alpha1"}
"""Kinds that Kubernetes itself does not know."""


@pytest.mark.parametrize("name", ["compose.yaml", "compose.tls.yaml"])
def test_compose_files_keep_to_the_specification(name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_compose_file_is_found(tmp_path: Any) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text("services:\n  a: {image: x, helthcheck: {}}\n")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(wrong)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_keeps_to_kubernetes_schemas(version: str) -> None:
    objects = kubernetes_objects()
    assert len(objects) > 30
    for path, o in objects:
        if o["apiVersion"] not in CUSTOM:
            try:
                kubernetes_validate.validate(o, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                pytest.fail(f"{path.relative_to(KUBERNETES)}: {o['kind']} {o['metadata']['name']}: {error.message}")


def test_a_wrong_object_is_found() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_build_and_keep_to_the_schemas(name: str) -> None:
    objects = overlay_objects(name)
    if objects is None:
        pytest.skip("no kubectl here: overlays are built with `kubectl kustomize`; the files themselves are checked")
    for o in objects:
        if o["kind"] != "Namespace":
            assert o["metadata"]["namespace"] == "t2v", o["metadata"]["name"]
        if o["apiVersion"] not in CUSTOM:
            kubernetes_validate.validate(o, NEWEST, strict=True)


def test_the_template_of_flow_run_pods_makes_a_valid_job() -> None:
    """Each placeholder filled with its default, as Prefect's worker does it."""
    template = json.loads((KUBERNETES / "components/jobs/flow-run.json").read_text())
    values = {name: spec.get("default") for name, spec in template["variables"]["properties"].items()}
    values |= {"name": "a-run", "command": ["prefect", "flow-run", "execute"], "env": [], "labels": {}}
    values["service_account_name"] = "default"

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: filled(v) for k, v in value.items()}
        if isinstance(value, list):
            return [filled(v) for v in value]
        whole = re.fullmatch(r"{{ (\w+) }}", value) if isinstance(value, str) else None
        if whole:
            return values[whole[1]]
        return value.replace("{{ name }}", "a-run") if isinstance(value, str) else value

    job = filled(template["job_configuration"]["job_manifest"])
    kubernetes_validate.validate(job, NEWEST, strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] == "flow-run"
