"""The stack's pieces, fast: settings, what Supervisor is told, and a light stack that starts, falls ill and stops."""

from __future__ import annotations

import configparser
import os
import re
import socket
import stat
import time
from pathlib import Path

import psutil
import pytest

from flows._store import Store
from infra.stack.config import PORTS, StackConfig, lay_out, load_stack_config
from infra.stack.health import CHECKS, why_ill
from infra.stack.launcher import Stack
from infra.stack.manager import StackError, render
from infra.stack.postgres import find_postgres
from infra.stack.services import ROOT, flow_environment, services, socket_path
from t2v_core.errors import ConfigError, StoreError


def layout(folder: Path, postgres: str = "", **settings: object):  # type: ignore[no-untyped-def]
    return lay_out(StackConfig(folder=folder, **settings), postgres)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("T2V_STACK_")]:
        monkeypatch.delenv(name)


def test_the_example_lists_every_setting_at_its_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "infra" / "stack" / "example.env").read_text()
    named = set(re.findall(r"^#(T2V_STACK_[A-Z_]+)=", text, re.M))
    assert named == {f"T2V_STACK_{name.upper()}" for name in StackConfig.model_fields}
    everything = tmp_path / "all.env"
    everything.write_text(re.sub(r"^#(?=T2V_STACK_)", "", text, flags=re.M))
    usual, given = StackConfig(), load_stack_config(str(everything))
    assert given.model_copy(update={"ports": {}}) == usual
    assert given.ports.items() <= PORTS.items()
    # The environment goes before the file.
    monkeypatch.setenv("T2V_STACK_BUCKET", "other")
    assert load_stack_config(str(everything)).bucket == "other"


def test_wrong_settings_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no env file.*example\.env"):
        load_stack_config(str(tmp_path / "none.env"))
    (tmp_path / "odd.env").write_text("T2V_STACK_BUKET=x\n")
    with pytest.raises(ConfigError, match="(?i)buket"):
        load_stack_config(str(tmp_path / "odd.env"))
    monkeypatch.setenv("T2V_STACK_PORT", "1")
    with pytest.raises(ConfigError, match="unknown variables.*T2V_STACK_PORT'.*T2V_STACK_PORTS"):
        load_stack_config()
    with pytest.raises(ConfigError, match=r"unknown ports \['prefct'\]"):
        layout(tmp_path, ports={"prefct": 1})
    with pytest.raises(ConfigError, match=r"\['mlflow', 'prefect'\] are the same"):
        layout(tmp_path, ports={"prefect": 5000})


def test_ports_and_passwords_stay_for_a_folder(tmp_path: Path) -> None:
    one, two = (layout(tmp_path / "a", free_ports=True) for _ in range(2))
    other = layout(tmp_path / "b")
    assert one.ports == two.ports
    assert len(set(one.ports.values())) == len(PORTS)
    assert (one.password, one.secret_key) == (two.password, two.secret_key)
    assert one.secret_key != other.secret_key
    assert other.ports == PORTS
    assert stat.S_IMODE((tmp_path / "a" / "secrets.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("postgres", ["", "/somewhere/bin"])
def test_what_supervisor_is_told(tmp_path: Path, postgres: str) -> None:
    place = layout(tmp_path / "a % folder", postgres)
    programs = services(place)
    assert {p.name for p in programs} == set(CHECKS) - (set() if postgres else {"postgres"})
    told = configparser.RawConfigParser(interpolation=None)
    told.read_string(render(place, programs))
    for program in programs:
        section = told[f"program:{program.name}"]
        # Passwords are on no command line: everyone on a machine reads those.
        assert place.password not in section["command"]
        assert place.secret_key not in section["command"]
        assert section["autorestart"] == "true"
        assert section["stdout_logfile"].replace("%%", "%").endswith(f"logs/{program.name}.log")
        assert not re.search(r"0\.0\.0\.0|\[::\]", section["command"] + section["environment"])
    logs = [told[s]["stdout_logfile"] for s in told.sections() if s.startswith("program:")]
    assert len(set(logs)) == len(logs)
    scheme = "postgresql+asyncpg://" if postgres else "sqlite+aiosqlite:///"
    assert f'PREFECT_SERVER_DATABASE_CONNECTION_URL="{scheme}' in told["program:prefect"]["environment"]


def test_flows_are_told_what_they_read(tmp_path: Path) -> None:
    import flows._settings

    environment = flow_environment(layout(tmp_path))
    read = set(re.findall(r"^\| ((?:T2V|MLFLOW|PREFECT)_\w+) \|", str(flows._settings.__doc__), re.M))
    addresses = {"T2V_STORE", "T2V_DASK", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"}
    assert addresses <= read & set(environment)
    assert {name for name in environment if name.startswith("T2V_")} <= read  # nothing that no flow reads
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"


def test_a_long_folder_has_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    assert len(socket_path(deep, "supervisor")) < 100
    assert socket_path(deep, "supervisor") != socket_path(tmp_path / ("y" * 100), "supervisor")


def test_postgresql_where_it_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("infra.stack.postgres._programs", lambda: "")
    programs, reason = find_postgres(StackConfig(folder=tmp_path))
    assert programs == ""
    assert "not installed" in reason
    with pytest.raises(ConfigError, match="T2V_STACK_DATABASE=postgresql, but PostgreSQL is not installed"):
        find_postgres(StackConfig(folder=tmp_path, database="postgresql"))


@pytest.mark.server
def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = StackConfig(folder=tmp_path / "s", database="sqlite", free_ports=True, ports={"mlflow": port})
        stack = Stack(config)
        with pytest.raises(ConfigError, match=f"port {port} of 'mlflow' is not free"):
            stack.up(only=["s3"])
    assert not stack.manager.running()


@pytest.mark.soak
@pytest.mark.server
def test_a_light_stack_starts_falls_ill_comes_back_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 server and Dask: a store on it holds what the contract wants, a killed process is back, nothing is left."""
    said: list[str] = []
    config = StackConfig(folder=tmp_path / "s", database="sqlite", free_ports=True, dask_workers=1)
    stack = Stack(config, say=said.append)
    light = ["s3", "scheduler", "dask-workers"]
    stack.up(only=light)
    try:
        assert stack.ills() == dict.fromkeys(light, "")
        assert [line.split()[0] for line in said] == light
        assert stat.S_IMODE(stack.manager.conf.stat().st_mode) == 0o600
        with pytest.raises(StackError, match="runs in .* already"):
            Stack(config).up(only=light)
        for name, value in flow_environment(stack.layout).items():
            monkeypatch.setenv(name, value)
        store = Store(stack.layout.url["store"])
        store.check_writable()  # conditional writes hold
        assert store.put("kept", b"1")
        assert not store.put("kept", b"2")
        with pytest.raises(StoreError, match=r"no-such-bucket.*create it"):
            Store("s3://no-such-bucket/x").put("k", b"")
        family = psutil.Process(stack.manager.states()["s3"]["pid"])
        family.kill()
        deadline = time.monotonic() + 30
        while stack.manager.states()["s3"]["pid"] in (0, family.pid) or why_ill(stack.layout, "s3"):
            assert time.monotonic() < deadline, stack.manager.tail("s3")
            time.sleep(0.2)
        assert store.read("kept") == b"1"  # on disk, not in memory
        pids = [state["pid"] for state in stack.manager.states().values() if state["pid"]]
        pids += [child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)]
        assert len(pids) >= 4
    finally:
        Store.disconnect()
        stack.down()
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    with pytest.raises(StackError, match="no stack runs"):
        stack.ills()
    assert list((tmp_path / "s").glob("*.sock")) == []
