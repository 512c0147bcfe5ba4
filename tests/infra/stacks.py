"""The stacks in infra/ as the tests see them: containers with commands, variables and ports, whatever file they are in."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "COMPOSE",
    "KUBERNETES",
    "OVERLAYS",
    "ROOT",
    "Container",
    "compose_file",
    "compose_stack",
    "kubernetes_objects",
    "kubernetes_stack",
    "listens",
    "overlay_objects",
    "references",
]

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "infra/compose"
KUBERNETES = ROOT / "infra/kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:?[-?])([^}]*))?\}")


@dataclass(frozen=True)
class Container:
    """One container of a stack."""

    name: str
    image: str
    command: tuple[str, ...]
    env: dict[str, str]
    """Variable to value; secrets have the name of what they refer to, in angle brackets."""
    ports: frozenset[int]
    """What it is declared to listen on."""
    probed: frozenset[int]
    """Ports of its health checks."""
    raw: dict[str, Any] = field(repr=False)
    """The service of a compose file, or the container of a pod."""
    pod: dict[str, Any] = field(default_factory=dict, repr=False)
    """The pod's spec; empty in compose."""


def _substituted(text: str) -> str:
    """Compose's own reading of ${NAME:-default}; what has no default becomes <NAME>."""
    return _VARIABLE.sub(lambda m: (m[3] or "") if (m[2] or "").endswith("-") else f"<{m[1]}>", text)


def compose_file(name: str) -> dict[str, Any]:
    """A compose file, parsed."""
    content: dict[str, Any] = yaml.safe_load((COMPOSE / name).read_text())
    return content


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Compose's merging of two files, as far as ours need it: maps are merged, lists of volumes joined, the rest replaced."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = _merged(out[key], value)
        elif key == "volumes" and isinstance(value, list):
            out[key] = [*out.get(key, []), *value]
        else:
            out[key] = value
    return out


def _http_ports(words: Any) -> frozenset[int]:
    return frozenset(map(int, re.findall(r"http://127\.0\.0\.1:(\d+)", str(words))))


def compose_stack(*names: str) -> dict[str, Container]:
    """The services of compose files, merged in this order."""
    content: dict[str, Any] = {}
    for name in names:
        content = _merged(content, compose_file(name))
    stack = {}
    for name, service in content["services"].items():
        command = service.get("command", [])
        words = shlex.split(command) if isinstance(command, str) else command
        stack[name] = Container(
            name=name,
            image=_substituted(service["image"]),
            command=tuple(_substituted(str(word)) for word in words),
            env={k: _substituted(str(v)) for k, v in service.get("environment", {}).items()},
            ports=frozenset(int(port.rsplit(":", 1)[1]) for port in service.get("ports", [])),
            probed=_http_ports(service.get("healthcheck", {}).get("test", "")),
            raw=service,
        )
    return stack


def _documents(path: Path) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def kubernetes_objects() -> list[tuple[Path, dict[str, Any]]]:
    """Every whole object in infra/kubernetes, with its file; kustomizations are none."""
    found = []
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            found += [(path, document) for document in _documents(path)]
    return found


def overlay_objects(name: str) -> list[dict[str, Any]] | None:
    """What `kubectl apply -k` would send; None where there is no kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return None
    done = subprocess.run(
        [kubectl, "kustomize", str(KUBERNETES / "overlays" / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [d for d in yaml.safe_load_all(done.stdout) if d]


def kubernetes_stack(objects: list[dict[str, Any]]) -> dict[str, Container]:
    """The containers of all pods, by the name of their workload, with their config maps read in."""
    maps = {o["metadata"]["name"]: o.get("data", {}) for o in objects if o["kind"] == "ConfigMap"}
    stack = {}
    for o in objects:
        if o["kind"] not in ("Deployment", "StatefulSet", "Job"):
            continue
        pod = o["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        env: dict[str, str] = {}
        for source in container.get("envFrom", []):
            env |= maps[source["configMapRef"]["name"]]
        for item in container.get("env", []):
            ref = item.get("valueFrom", {}).get("secretKeyRef")
            env[item["name"]] = f"<{ref['key']}>" if ref else item["value"]
        probes = [container[k] for k in ("startupProbe", "readinessProbe", "livenessProbe") if k in container]
        stack[o["metadata"]["name"]] = Container(
            name=o["metadata"]["name"],
            image=container["image"],
            command=tuple(container.get("args", [])),
            env=env,
            ports=frozenset(p["containerPort"] for p in container.get("ports", [])),
            probed=frozenset(p["httpGet"]["port"] for p in probes if "httpGet" in p),
            raw=container,
            pod=pod,
        )
    return stack


def _option(command: tuple[str, ...], name: str) -> str | None:
    for word, following in zip(command, (*command[1:], ""), strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1]
    return None


def listens(container: Container) -> frozenset[int]:
    """Where a container's command listens, by its options and the defaults of what it runs."""
    command = container.command
    if not command:
        return frozenset({5432}) if container.image.startswith("postgres:") else frozenset()
    ports: set[int] = set()
    if command[0] == "server" and "seaweedfs" in container.image:
        # Master, volume server and filer, each with gRPC at +10000; these are SeaweedFS' defaults.
        ports = {9333, 19333, 8080, 18080, 8888, 18888}
    for name in ("--port", "-port", "--dashboard-address"):
        value = _option(command, name)
        if value is not None:
            ports.add(int(value.rsplit(":", 1)[-1]))
    if "--with-healthcheck" in command:
        ports.add(int(container.env["PREFECT_WORKER_WEBSERVER_PORT"]))
    return frozenset(ports)


_ADDRESS = re.compile(r"\b(?:https?|tcp|tls)://([a-z][a-z0-9.-]*):(\d+)|^-filer=([a-z0-9-]+):(\d+)")


def references(container: Container) -> set[tuple[str, int]]:
    """Hosts of the stack, with ports, that a container is told to call."""
    found = set()
    own = ("PREFECT_SERVER_UI_API_URL",)  # for browsers
    for text in (*container.command, *(v for k, v in container.env.items() if k not in own)):
        for m in _ADDRESS.finditer(text):
            found.add((m[1] or m[3], int(m[2] or m[4])))
    for host, port in (("PGHOST", "PGPORT"), ("PREFECT_SERVER_DATABASE_HOST", "PREFECT_SERVER_DATABASE_PORT")):
        if host in container.env:
            found.add((container.env[host], int(container.env[port])))
    return found
