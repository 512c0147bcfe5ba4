"""Commands and variables of the stacks are ones that the installed programs really take."""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import click
import pytest
from stacks import COMPOSE, KUBERNETES, ROOT, Container, kubernetes_objects
from test_wiring import STACKS

T2V = [
    pytest.param(container, id=f"{stack}: {container.name}")
    for stack, containers in STACKS.items()
    for container in containers.values()
    if container.image.startswith("t2v-")
]
ALL = [
    pytest.param(container, id=f"{stack}: {container.name}")
    for stack, containers in STACKS.items()
    for container in containers.values()
]

# Flags of SeaweedFS 4.48 that the stacks use: weed/command/server.go and s3.go of its sources.
WEED = {
    "server": {
        "-dir",
        "-ip",
        "-ip.bind",
        "-filer",
        "-master.volumePreallocate",
        "-master.volumeSizeLimitMB",
        "-volume.max",
    },
    "s3": {"-filer", "-port", "-ip.bind"},
}


def _click(command: click.Command, words: list[str]) -> dict[str, Any]:
    """Parse, and run nothing; what does not parse raises."""
    while isinstance(command, click.Group):
        context = click.Context(command)
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]!r}"
        command, words = found, words[1:]
    return dict(command.make_context(command.name, list(words)).params)


def _mlflow() -> click.Group:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, of its own code
        from mlflow.cli import cli
    return cli


def _dask() -> click.Group:
    from distributed.cli.dask_scheduler import main as scheduler
    from distributed.cli.dask_worker import main as worker

    return click.Group(commands={"scheduler": scheduler, "worker": worker})


def _setup() -> Any:
    spec = importlib.util.spec_from_file_location("t2v_setup", ROOT / "docker/setup.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("container", T2V)
def test_commands_parse(container: Container) -> None:
    program, *words = container.command
    if program == "mlflow":
        params = _click(_mlflow(), words)
        assert params["app_name"] == "basic-auth"
        assert "mlflow:5000" in params["allowed_hosts"].split(",")
        assert "*" not in params["allowed_hosts"]
    elif program == "dask":
        params = _click(_dask(), words)
        # Dask takes options that it does not know for arguments of a preload.
        assert not params["preload_argv"], f"unknown option {params['preload_argv']}"
        if words[0] == "worker":
            assert params["nthreads"] == 1
            assert params["preload_nanny"] == ("flows._cluster",)
            assert importlib.util.find_spec("flows._cluster")
    elif program == "prefect":
        from prefect.cli._app import _app

        command, _, _ = _app.parse_args(words, exit_on_error=False, print_error=False)
        assert command.__name__ == "start"
    else:
        assert (program, words[0]) == ("python", "docker/setup.py")
        _setup().parser().parse_args(words[1:])


@pytest.mark.parametrize(
    "words", ["mlflow server --allowed-host=a", "dask worker tcp://a:1 --nthread=1", "prefect worker start --poll t2v"]
)
def test_commands_that_do_not_parse_are_found(words: str) -> None:
    command = tuple(words.split())
    with pytest.raises(Exception, match="(?i)no such option|unknown option"):
        test_commands_parse(Container("a", "t2v-cpu:1", command, {}, frozenset(), frozenset(), {}))


@pytest.mark.parametrize("container", ALL)
def test_weed_flags_exist(container: Container) -> None:
    if "seaweedfs" not in container.image:
        return
    command, *flags = container.command
    assert {flag.split("=")[0] for flag in flags} <= WEED[command]


def _read_by_t2v() -> set[str]:
    """Names that flows/_settings.py asks the environment for."""
    tree = ast.parse((ROOT / "flows/_settings.py").read_text())
    names = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {n for n in names if re.fullmatch(r"[A-Z][A-Z0-9_]+", n)}


def _known(name: str) -> bool:
    """Whether some program of the image really reads a variable of this name."""
    if name.startswith("PREFECT_INTEGRATIONS_KUBERNETES_"):
        return name in PREFECT_KUBERNETES
    if name.startswith("PREFECT_"):
        from prefect.settings import Settings
        from prefect.settings.legacy import _get_settings_fields

        return name in _get_settings_fields(Settings)
    if name.startswith("MLFLOW_"):
        import mlflow.environment_variables as variables

        return hasattr(variables, name) or name in _read_by_t2v()
    if name.startswith("DASK_"):
        import dask
        import distributed  # noqa: F401  (its defaults are read when it is imported)

        place: Any = dask.config.get("distributed")
        parts = name.removeprefix("DASK_DISTRIBUTED__").lower().replace("_", "-").split("--")
        for part in parts:
            if not isinstance(place, dict) or part not in place:
                return False
            place = place[part]
        return True
    if name.startswith("AWS_"):
        from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES
        from botocore.credentials import EnvProvider

        read = {v for entry in BOTOCORE_DEFAUT_SESSION_VARIABLES.values() for v in _listed(entry[1])}
        read |= {EnvProvider.ACCESS_KEY, EnvProvider.SECRET_KEY, "AWS_ENDPOINT_URL", "AWS_EC2_METADATA_DISABLED"}
        return name in read
    if name.startswith("T2V_"):
        return name in _read_by_t2v()
    return name in OTHERS


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


OTHERS = {
    # libpq
    "PGHOST",
    "PGPORT",
    "PGUSER",
    "PGPASSWORD",
    # the image of Postgres
    "POSTGRES_USER",
    "POSTGRES_DB",
    "POSTGRES_PASSWORD",
    "PGDATA",
}
# prefect_kubernetes.settings 0.8.0, which only images for components/jobs have
PREFECT_KUBERNETES = {
    "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_NAME",
    "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_KEY",
    "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES",
}


@pytest.mark.parametrize("container", ALL)
def test_variables_are_read_by_something(container: Container) -> None:
    for name in container.env:
        assert _known(name), f"{container.name}: nothing reads {name}"


def test_variables_that_nothing_reads_are_found() -> None:
    for name in (
        "T2V_STOER",
        "PREFECT_SERVER_API_AUTH",
        "MLFLOW_SERVER_ALLOWED_HOST",
        "DASK_DISTRIBUTED__COMM__TLS__CA",
        "AWS_ENDPOINT",
    ):
        assert not _known(name)


def test_variables_of_config_maps_are_read_by_something() -> None:
    """Those of components too, without kubectl."""
    for path, o in kubernetes_objects():
        if o["kind"] == "ConfigMap" and o["metadata"]["name"] not in ("postgres-init", "mlflow-auth"):
            for name in o["data"]:
                assert _known(name), f"{path.name}: nothing reads {name}"


def test_examples_name_exactly_the_variables_that_are_used() -> None:
    used = set(re.findall(r"\$\{(\w+)", (COMPOSE / "compose.yaml").read_text()))
    used |= set(re.findall(r"\$\{(\w+)", (COMPOSE / "compose.tls.yaml").read_text()))
    example = (COMPOSE / "env.example").read_text()
    named = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", example, re.M))
    assert named == used
    # What has no default has an empty line to fill in, and compose refuses to start without it.
    needed = set(re.findall(r"\$\{(\w+):\?", (COMPOSE / "compose.yaml").read_text()))
    assert set(re.findall(r"^([A-Z][A-Z0-9_]+)=$", example, re.M)) == needed
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", (COMPOSE / "compose.yaml").read_text()):
        assert f"# {name}={default}\n" in example, f"env.example does not show the default of {name}"
    keys = set()
    for _, o in kubernetes_objects():
        keys |= set(re.findall(r"'secretKeyRef': \{'name': 't2v-secrets', 'key': '(\w+)'\}", str(o)))
    secrets = (KUBERNETES / "secrets.env.example").read_text()
    assert set(re.findall(r"^([A-Z][A-Z0-9_]+)=", secrets, re.M)) == keys


def test_settings_of_the_dockerfile_are_read_by_something() -> None:
    spec = importlib.util.spec_from_file_location("t2v_variables", ROOT / "docker/variables.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.variables((ROOT / "docker/Dockerfile").read_text())
    for name in found:
        common = {"PATH", "HOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"}
        assert name in common | {"GIT_PYTHON_REFRESH", "DO_NOT_TRACK"} or _known(name), name
    assert Path(found["HOME"]) in Path(found["PREFECT_HOME"]).parents
