"""Ports, hosts, networks, policies and images of the stacks fit together."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from stacks import (
    KUBERNETES,
    ROOT,
    Container,
    compose_file,
    compose_stack,
    kubernetes_objects,
    kubernetes_stack,
    listens,
    overlay_objects,
    references,
)

COMPOSE_STACKS = {"compose": ["compose.yaml"], "compose with TLS": ["compose.yaml", "compose.tls.yaml"]}


def _base() -> list[dict[str, Any]]:
    inside = (KUBERNETES / "base", KUBERNETES / "components/gpu")
    return [o for path, o in kubernetes_objects() if path.parent in inside]


def _stacks() -> dict[str, dict[str, Container]]:
    stacks = {name: compose_stack(*files) for name, files in COMPOSE_STACKS.items()}
    stacks["kubernetes"] = kubernetes_stack(_base())
    for overlay in ("full", "jobs"):
        objects = overlay_objects(overlay)
        if objects is not None:
            stacks[f"overlay {overlay}"] = kubernetes_stack(objects)
    return stacks


STACKS = _stacks()


@pytest.mark.parametrize("stack", STACKS)
def test_whoever_is_called_listens(stack: str) -> None:
    containers = STACKS[stack]
    seen = 0
    for container in containers.values():
        for host, port in references(container):
            name = host.split(".")[0]
            assert name in containers, f"{container.name} calls {host}, which is not there"
            assert port in listens(containers[name]), f"{container.name} calls {host}:{port}; it does not listen there"
            seen += 1
    assert seen >= 12


@pytest.mark.parametrize("stack", STACKS)
def test_health_checks_and_declared_ports_are_listened_on(stack: str) -> None:
    for container in STACKS[stack].values():
        assert container.probed <= listens(container), container.name
        assert container.ports <= listens(container), container.name
        if container.name != "setup":
            checked = container.raw.get("healthcheck") or container.raw.get("livenessProbe")
            assert checked, f"{container.name} has no health check"


def test_dask_speaks_tls_or_plain_on_all_sides() -> None:
    for stack, scheme in (("compose", "tcp"), ("compose with TLS", "tls")):
        containers = STACKS[stack]
        assert containers["prefect-worker"].env["T2V_DASK"] == f"{scheme}://dask-scheduler:8786"
        workers = [c for c in containers.values() if c.command[:2] == ("dask", "worker")]
        assert {c.name for c in workers} == {"dask-worker", "dask-gpu-0", "dask-gpu-1"}
        assert all(c.command[2] == f"{scheme}://dask-scheduler:8786" for c in workers)
        assert ("tls" in containers["dask-scheduler"].command) == (scheme == "tls")
        for c in (*workers, containers["dask-scheduler"], containers["prefect-worker"]):
            assert ("DASK_DISTRIBUTED__COMM__TLS__CA_FILE" in c.env) == (scheme == "tls"), c.name


def test_one_process_on_each_gpu() -> None:
    compose = STACKS["compose"]
    cards = []
    for name in ("dask-gpu-0", "dask-gpu-1"):
        (device,) = compose[name].raw["deploy"]["resources"]["reservations"]["devices"]
        cards += device["device_ids"]
        assert "replicas" not in compose[name].raw["deploy"]
    assert cards == ["0", "1"]
    gpu = STACKS["kubernetes"]["dask-gpu-worker"]
    assert gpu.raw["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for container in (compose["dask-gpu-0"], compose["dask-gpu-1"], gpu):
        assert {"--nworkers=1", "--nthreads=1", "--resources=GPU=1"} <= set(container.command)
        assert "t2v-cuda:" in container.image
    for container in STACKS["kubernetes"].values():
        if container is not gpu:
            assert "nvidia.com/gpu" not in container.raw["resources"]["limits"], container.name


def test_compose_networks_let_calls_through_and_nothing_else() -> None:
    containers = STACKS["compose"]
    for container in containers.values():
        for host, _ in references(container):
            shared = set(container.raw["networks"]) & set(containers[host].raw["networks"])
            assert shared, f"{container.name} and {host} share no network"
    # SeaweedFS' own ports ask for no credentials: the gateway alone is on its network.
    assert {c.name for c in containers.values() if "object" in c.raw["networks"]} == {"seaweedfs", "s3"}
    networks = compose_file("compose.yaml")["networks"]
    assert networks["t2v"]["internal"]
    assert networks["object"]["internal"]
    for container in containers.values():
        for port in container.raw.get("ports", []):
            assert port.startswith("${T2V_BIND:-127.0.0.1}:"), f"{container.name} is published on all addresses"


def _selected(selector: dict[str, Any], name: str) -> bool:
    labels = {"app.kubernetes.io/name": name}
    if any(labels.get(k) != v for k, v in selector.get("matchLabels", {}).items()):
        return False
    for e in selector.get("matchExpressions", []):
        assert e["operator"] == "In"
        if labels.get(e["key"]) not in e["values"]:
            return False
    return True


def _allowed(policies: list[dict[str, Any]], source: str, target: str, port: int) -> bool:
    """Kubernetes' rule: where any policy selects the target, some policy must let the call in."""
    selecting = [p["spec"] for p in policies if _selected(p["spec"]["podSelector"], target)]
    if not selecting:
        return True
    for spec in selecting:
        for rule in spec.get("ingress", []):
            ports = rule.get("ports")
            if ports is not None and port not in [p["port"] for p in ports]:
                continue
            if any(_selected(f["podSelector"], source) for f in rule["from"] if "podSelector" in f):
                return True
    return False


def test_network_policies_let_calls_through_and_nothing_else() -> None:
    objects = _base()
    policies = [o for o in objects if o["kind"] == "NetworkPolicy"]
    containers = kubernetes_stack(objects)
    wanted = {(c.name, host, port) for c in containers.values() for host, port in references(c)}
    # Flows and workers answer to calls that no variable names: the scheduler calls its workers, and these each other.
    wanted |= {("dask-scheduler", w, 40000) for w in ("dask-worker", "dask-gpu-worker")}
    for source, target, port in sorted(wanted):
        assert _allowed(policies, source, target, port), f"{source} may not call {target}:{port}"
    assert not _allowed(policies, "prefect-worker", "seaweedfs", 8888)
    assert not _allowed(policies, "dask-worker", "postgres", 5432)
    assert not _allowed(policies, "dask-worker", "prefect-server", 4200)
    assert not _allowed(policies, "mlflow", "dask-scheduler", 8786)
    assert not _allowed(policies, "anybody", "dask-worker", 40000)


def test_services_lead_to_their_pods() -> None:
    objects = _base()
    containers = kubernetes_stack(objects)
    services = [o for o in objects if o["kind"] == "Service"]
    assert len(services) == 6
    for service in services:
        name = service["metadata"]["name"]
        assert service["spec"]["selector"] == {"app.kubernetes.io/name": name}
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in containers[name].ports & listens(containers[name])
    for o in objects:
        if o["kind"] in ("Deployment", "StatefulSet"):
            labels = o["spec"]["template"]["metadata"]["labels"]
            assert o["spec"]["selector"]["matchLabels"] == labels == {"app.kubernetes.io/name": o["metadata"]["name"]}


@pytest.mark.parametrize("stack", STACKS)
def test_images_are_pinned(stack: str) -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    for container in STACKS[stack].values():
        name, _, tag = container.image.partition(":")
        assert re.fullmatch(r"\d+(\.\d+)+", tag), f"{container.image}: wanted a version, not a moving tag"
        if name.startswith("t2v-"):
            assert tag == version[1]
    by_name = {}
    for containers in STACKS.values():
        for container in containers.values():
            name, _, tag = container.image.partition(":")
            assert by_name.setdefault(name, tag) == tag, f"{name} has two versions"
    assert set(by_name) == {"postgres", "chrislusf/seaweedfs", "t2v-cpu", "t2v-cuda"}


@pytest.mark.parametrize("stack", STACKS)
def test_every_container_has_limits(stack: str) -> None:
    for container in STACKS[stack].values():
        where = container.raw.get("deploy", {}).get("resources") or container.raw.get("resources", {})
        assert {"memory"} | ({"cpus"} if "compose" in stack else {"cpu"}) <= set(where["limits"]), container.name


def test_compose_restarts_and_keeps_what_it_must() -> None:
    content = compose_file("compose.yaml")
    for name, service in content["services"].items():
        assert service["restart"] == ("on-failure" if name == "setup" else "unless-stopped")
        assert service["logging"]["options"] == {"max-size": "20m", "max-file": "5"}
        for needed, how in service.get("depends_on", {}).items():
            waited = content["services"][needed]
            if how["condition"] == "service_healthy":
                assert "healthcheck" in waited
    assert set(content["volumes"]) == {"postgres", "seaweedfs"}


def test_databases_are_made_for_those_who_ask() -> None:
    made = set(re.findall(r"CREATE DATABASE (\w+);", (ROOT / "infra/compose/postgres-init.sql").read_text()))
    maps = {o["metadata"]["name"]: o["data"] for o in _base() if o["kind"] == "ConfigMap"}
    assert set(re.findall(r"CREATE DATABASE (\w+);", maps["postgres-init"]["10-databases.sql"])) == made
    for stack in ("compose", "kubernetes"):
        containers = STACKS[stack]
        asked = {containers["prefect-server"].env["PREFECT_SERVER_DATABASE_NAME"]}
        asked |= {m for w in containers["mlflow"].command for m in re.findall(r"postgresql:///(\w+)", w)}
        asked |= set(re.findall(r"postgresql:///(\w+)", maps["mlflow-auth"]["auth.ini"]))
        assert asked == made


def test_the_pool_is_that_of_prefect_yaml() -> None:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    pools = {d["work_pool"]["name"] for d in content["deployments"]}
    assert pools == {"t2v"}
    for stack in STACKS.values():
        worker = stack["prefect-worker"].command
        assert worker[worker.index("--pool") + 1] == "t2v"
    for d in content["deployments"]:
        file, _, function = d["entrypoint"].partition(":")
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(), re.M), d["entrypoint"]
