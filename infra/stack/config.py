"""What the stack is told: an env file, or variables that begin with ``T2V_STACK_``. Everything has a default."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from t2v_core.errors import ConfigError

__all__ = ["PORTS", "Layout", "StackConfig", "lay_out", "load_stack_config"]

PORTS = {
    "prefect": 4200,
    "worker": 4201,
    "mlflow": 5000,
    "scheduler": 8786,
    "dashboard": 8787,
    "postgres": 5433,
    "s3": 8333,
    "s3_grpc": 18333,
    "s3_master": 9333,
    "s3_master_grpc": 19333,
    "s3_volume": 8334,
    "s3_volume_grpc": 18334,
    "s3_filer": 8335,
    "s3_filer_grpc": 18335,
}
"""Every port that the stack listens on, all on loopback, and its default."""


class StackConfig(BaseSettings):
    """Settings of the stack. `infra/stack/example.env` lists them."""

    model_config = SettingsConfigDict(env_prefix="T2V_STACK_", frozen=True, extra="forbid")

    folder: Path = Field(Path("runs/stack"), description="Data, logs and secrets of the stack; kept when it stops.")
    database: Literal["auto", "postgresql", "sqlite"] = Field(
        "auto", description="auto: PostgreSQL where it is installed and can read the folder, else SQLite."
    )
    bucket: str = Field("t2v", min_length=3, description="Bucket of the store (prefix store/) and of MLflow's files.")
    pool: str = Field("t2v", description="Prefect work pool, of type process.")
    dask_workers: int = Field(0, ge=0, le=256, description="Dask worker processes; 0: one for each core.")
    ports: dict[str, int] = Field(
        default_factory=dict, description='Ports by name, as JSON: {"prefect": 4300}; 0 takes a free one.'
    )
    free_ports: bool = Field(False, description="Take a free port wherever `ports` names none.")
    cron: str = Field("0 2 * * *", description="When the nightly run begins.")
    start_seconds: float = Field(180, gt=0, description="How long one process may take until it is healthy.")


def load_stack_config(env_file: str = "") -> StackConfig:
    """Read the env file, over it the environment.

    Raises:
        ConfigError: no such file, a variable of no such name, or a value that does not fit.
    """
    if env_file and not Path(env_file).is_file():
        raise ConfigError(f"no env file {env_file!r}; copy infra/stack/example.env, or leave --env-file out")
    known = {f"T2V_STACK_{name.upper()}" for name in StackConfig.model_fields}
    unknown = sorted(n for n in os.environ if n.startswith("T2V_STACK_") and n not in known)
    if unknown:
        raise ConfigError(f"unknown variables {unknown}; wanted some of {sorted(known)}")
    try:
        return StackConfig(_env_file=env_file or None)  # type: ignore[call-arg]
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"the stack's settings are wrong: {told}") from None


@dataclass(frozen=True)
class Layout:
    """A stack's places: folder, ports, passwords, and which database it has."""

    config: StackConfig
    folder: Path
    ports: dict[str, int]
    access_key: str
    secret_key: str
    password: str
    postgres: str
    """Folder of PostgreSQL's programs; empty where SQLite is used."""

    @property
    def url(self) -> dict[str, str]:
        """Addresses without credentials, by name of the process."""
        p = self.ports
        return {
            "prefect": f"http://127.0.0.1:{p['prefect']}",
            "mlflow": f"http://127.0.0.1:{p['mlflow']}",
            "s3": f"http://127.0.0.1:{p['s3']}",
            "scheduler": f"tcp://127.0.0.1:{p['scheduler']}",
            "dashboard": f"http://127.0.0.1:{p['dashboard']}",
            "store": f"s3://{self.config.bucket}/store",
        }

    @property
    def api(self) -> str:
        """Prefect's API."""
        return f"{self.url['prefect']}/api"


def _read_or_make(path: Path) -> dict[str, str]:
    """Passwords, drawn once and kept where only the owner reads them."""
    if not path.exists():
        drawn = {name: secrets.token_urlsafe(24) for name in ("secret_key", "password")}
        drawn["access_key"] = "t2v-" + secrets.token_hex(6)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(drawn, file)
    return dict(json.loads(path.read_text()))


def _free(taken: set[int]) -> int:
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        if port not in taken:
            return port


def _ports(config: StackConfig, path: Path) -> dict[str, int]:
    """The ports: what was given, else what the last start in this folder took, else a free one or the default."""
    unknown = sorted(set(config.ports) - set(PORTS))
    if unknown:
        raise ConfigError(f"unknown ports {unknown} in T2V_STACK_PORTS; wanted some of {sorted(PORTS)}")
    # PostgreSQL, SeaweedFS and MLflow write addresses down: a stack that starts again keeps its free ports.
    before: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    ports: dict[str, int] = {}
    for name, usual in PORTS.items():
        port = config.ports.get(name, 0 if config.free_ports else usual)
        ports[name] = port or before.get(name) or _free(set(ports.values()))
    twice = sorted(name for name, port in ports.items() if list(ports.values()).count(port) > 1)
    if twice:
        raise ConfigError(f"the ports of {twice} are the same; give each its own in T2V_STACK_PORTS")
    path.write_text(json.dumps(ports))
    return ports


def lay_out(config: StackConfig, postgres: str) -> Layout:
    """Make the folder, draw passwords once, and settle the ports.

    Args:
        config: the settings.
        postgres: folder of PostgreSQL's programs; empty for SQLite.
    """
    folder = config.folder.expanduser().resolve()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # PostgreSQL's account walks through; nobody else looks around
    kept = _read_or_make(folder / "secrets.json")
    return Layout(config, folder, _ports(config, folder / "ports.json"), postgres=postgres, **kept)
