"""Containers run without root, secrets are referred to and never written down, and only safe formats are loaded."""

from __future__ import annotations

import ast
import re
import subprocess
from typing import Any

import pytest
from stacks import COMPOSE, KUBERNETES, ROOT, Container, kubernetes_objects
from test_wiring import STACKS

COMPOSE_CONTAINERS = [
    pytest.param(container, id=f"{stack}: {container.name}")
    for stack, containers in STACKS.items()
    if stack.startswith("compose")
    for container in containers.values()
]
PODS = [
    pytest.param(container, id=f"{stack}: {container.name}")
    for stack, containers in STACKS.items()
    if not stack.startswith("compose")
    for container in containers.values()
]


@pytest.mark.parametrize("container", COMPOSE_CONTAINERS)
def test_compose_services_run_without_root(container: Container) -> None:
    service = container.raw
    uid, gid = map(int, service["user"].split(":"))
    assert uid > 0
    assert gid > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for dangerous in ("privileged", "cap_add", "pid", "ipc", "network_mode", "devices", "userns_mode"):
        assert dangerous not in service
    for volume in service.get("volumes", []):
        assert "docker.sock" not in volume
        # What is not the service's own data is mounted to be read.
        assert volume.endswith(":ro") or volume in ("postgres:/var/lib/postgresql/data", "seaweedfs:/data")


@pytest.mark.parametrize("container", PODS)
def test_pods_run_without_root(container: Container) -> None:
    pod = container.pod["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container.raw["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}
    # Only Prefect's Kubernetes worker talks to the API server.
    talks = container.pod.get("serviceAccountName") == "prefect-worker"
    assert container.pod["automountServiceAccountToken"] is talks
    for dangerous in ("hostNetwork", "hostPID", "hostIPC"):
        assert dangerous not in container.pod
    assert all("hostPath" not in volume for volume in container.pod.get("volumes", []))


def test_the_namespace_refuses_pods_with_more_rights() -> None:
    (namespace,) = [o for _, o in kubernetes_objects() if o["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_worker_account_is_bound_to_this_namespace() -> None:
    kinds = {o["kind"] for _, o in kubernetes_objects()}
    assert "ClusterRole" not in kinds
    assert "ClusterRoleBinding" not in kinds
    (role,) = [o for _, o in kubernetes_objects() if o["kind"] == "Role"]
    assert all("secrets" not in rule["resources"] and "*" not in str(rule) for rule in role["rules"])


def _stages() -> list[tuple[str, str, list[str]]]:
    """Stages of the Dockerfile: name, what it begins with, its lines."""
    stages: list[tuple[str, str, list[str]]] = []
    for line in (ROOT / "docker/Dockerfile").read_text().splitlines():
        m = re.match(r"FROM (\S+) AS (\S+)", line)
        if m:
            stages.append((m[2], m[1], []))
        elif stages:
            stages[-1][2].append(line)
    return stages


def test_images_run_without_root_and_begin_with_a_version() -> None:
    stages = {name: (source, lines) for name, source, lines in _stages()}
    for name in ("cpu", "cuda"):
        source, lines = stages[name]
        (user,) = [line for line in lines if line.startswith("USER ")]
        assert user == "USER 10001:10001"
        assert source == "base"
        assert not [line for line in lines if line.startswith("RUN ")], "the last stage only copies"
    outside = {source for source, _ in stages.values()} - set(stages)
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", source) for source in outside)
    for line in (ROOT / "docker/Dockerfile").read_text().splitlines():
        m = re.match(r"COPY (?!--from)(.+) (\S+)$", line)
        if m:
            for path in m[1].split():
                assert (ROOT / path).exists(), path
                assert f"!{path}\n" in (ROOT / ".dockerignore").read_text(), f".dockerignore keeps {path} out"


def test_uids_are_the_images() -> None:
    for containers in STACKS.values():
        for container in containers.values():
            uid = (
                container.pod["securityContext"]["runAsUser"] if container.pod else container.raw["user"].split(":")[0]
            )
            wanted = 10001 if container.image.startswith("t2v-") else 999 if "postgres" in container.image else 1000
            assert int(uid) == wanted, container.name


_SECRET = re.compile(r"PASSWORD|SECRET(?!_NAME|_KEY$)|AUTH_STRING$|SECRET_ACCESS_KEY|ACCESS_KEY_ID|SECRET_KEY")


@pytest.mark.parametrize("container", [*COMPOSE_CONTAINERS, *PODS])
def test_secrets_are_referred_to(container: Container) -> None:
    secret = {n for n in container.env if _SECRET.search(n) and "SECRET_NAME" not in n and "STRING_SECRET_KEY" not in n}
    assert secret or "seaweedfs" in container.name or container.name == "dask-scheduler"
    for name in secret:
        assert re.fullmatch(r"<[A-Z_]+>", container.env[name]), f"{container.name}: {name} is written down"
    # A password in a command line or a URL is seen by whoever lists processes.
    for word in container.command:
        assert "<" not in word, f"{container.name}: a secret in the command {word}"
        assert not re.search(r"://[^/\s]*@", word)


def test_workers_are_given_what_they_need_and_no_more() -> None:
    for containers in STACKS.values():
        for name, container in containers.items():
            if container.command[:2] == ("dask", "worker"):
                secrets = {v for v in container.env.values() if v.startswith("<")}
                assert secrets == {"<AWS_ACCESS_KEY_ID>", "<AWS_SECRET_ACCESS_KEY>"}, name


def test_no_secret_is_in_the_repository() -> None:
    for path in (COMPOSE / "env.example", *KUBERNETES.glob("*.example")):
        for name, value in re.findall(r"^([A-Z][A-Z0-9_]+)=(.*)$", path.read_text(), re.M):
            assert value in ("", "admin"), f"{path.name}: {name} has a value"
    asked = ["infra/compose/.env", "infra/kubernetes/secrets.env", "infra/kubernetes/secrets-flow-run.env"]
    asked += ["infra/compose/tls/server.key"]
    done = subprocess.run(["git", "check-ignore", *asked], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("no git checkout here")
    assert done.stdout.split() == asked


def _calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def test_only_safe_formats_are_loaded() -> None:
    """No pickle from outside: `torch.load` with weights_only and nothing that unpickles, evaluates or runs text."""
    refused = {
        "pickle.load",
        "pickle.loads",
        "joblib.load",
        "dill.load",
        "dill.loads",
        "cloudpickle.load",
        "cloudpickle.loads",
        "pd.read_pickle",
        "pandas.read_pickle",
        "torch.jit.load",
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "eval",
        "exec",
        "shelve.open",
        "marshal.loads",
        "os.system",
        "torch.hub.load",
    }
    seen = 0
    for path in [*(ROOT / "t2v_core").rglob("*.py"), *(ROOT / "flows").rglob("*.py"), *(ROOT / "docker").glob("*.py")]:
        for name, call in _calls(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{call.lineno}"
            options = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert name not in refused, f"{where}: {name}"
            assert options.get("allow_pickle") != "True", where
            assert options.get("shell") != "True", where
            assert options.get("trust_remote_code") != "True", where
            if name == "torch.load":
                seen += 1
                assert options.get("weights_only") == "True", f"{where}: torch.load without weights_only=True"
    assert seen >= 1


def test_the_search_for_unsafe_formats_finds_them() -> None:
    found: Any = dict(_calls(ast.parse("import torch\ntorch.load(p)\npickle.loads(b)")))
    assert set(found) == {"torch.load", "pickle.loads"}
