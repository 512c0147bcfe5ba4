"""`python -m infra.stack up|down|status|env|restart`: what `make stack` and its kin call."""

from __future__ import annotations

import shlex
import signal
import sys
from typing import Annotated, Any

import typer

from infra.stack.config import load_stack_config
from infra.stack.launcher import Stack
from infra.stack.services import flow_environment
from t2v_core.errors import T2VError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
EnvFile = Annotated[str, typer.Option("--env-file", help="Settings; infra/stack/example.env lists them.")]


def _stack(env_file: str) -> Stack:
    return Stack(load_stack_config(env_file), say=lambda line: print(line, flush=True))


def _addresses(stack: Stack) -> str:
    url, layout = stack.layout.url, stack.layout
    rows = [
        ("Prefect", url["prefect"], "flows, runs, the form to start one"),
        ("MLflow", url["mlflow"], "results, figures, the registered selector"),
        ("Dask", f"{url['dashboard']}/status", f"scheduler {url['scheduler']}"),
        ("S3", url["s3"], f"store {url['store']}"),
        ("database", f"127.0.0.1:{layout.ports['postgres']}" if layout.postgres else f"{layout.folder}/*.db", ""),
        ("logs", f"{layout.folder}/logs", "one for each process"),
    ]
    told = "\n".join(f"  {what:<9} {where:<34} {why}".rstrip() for what, where, why in rows)
    return f'{told}\n  a shell of its own:   eval "$({sys.executable} -m infra.stack env)"'


@app.command()
def up(
    env_file: EnvFile = "",
    detach: Annotated[bool, typer.Option("--detach", help="Return when all is well; `down` stops it.")] = False,
) -> None:
    """Start everything, print the addresses, and wait; Ctrl-C stops it all."""
    stack = _stack(env_file)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    try:
        stack.up()
        print(_addresses(stack), flush=True)
        if detach:
            return
        print("Ctrl-C stops it all.", flush=True)
        stack.watch()
    except KeyboardInterrupt:
        if stack.manager.running():
            print("stopping ...", flush=True)
            stack.down()
            print("stopped", flush=True)


@app.command()
def down(env_file: EnvFile = "") -> None:
    """Stop everything; data, logs and secrets stay in the folder."""
    _stack(env_file).down()
    print("stopped")


@app.command()
def status(env_file: EnvFile = "") -> None:
    """Say how each process is; exit status 1 where one is not well."""
    stack = _stack(env_file)
    states, ills = stack.manager.states(), stack.ills()
    for name, ill in ills.items():
        print(f"{name:<13} {states[name]['description']:<28} {ill or 'well'}")
    raise typer.Exit(int(any(ills.values())))


@app.command()
def restart(name: str, env_file: EnvFile = "") -> None:
    """Stop one process and start it again."""
    stack = _stack(env_file)
    if name not in stack.manager.states():
        raise typer.BadParameter(f"no process {name!r}; there are {sorted(stack.manager.states())}")
    stack.manager.stop_process(name)
    stack.manager.start_process(name)
    stack.wait_well(name, stack.layout.config.start_seconds)
    print(f"{name} is well")


@app.command()
def env(env_file: EnvFile = "") -> None:
    """Print what a shell needs to use the stack with `t2v`, `prefect` and Python. It holds the S3 key."""
    for variable, value in flow_environment(_stack(env_file).layout).items():
        print(f"export {variable}={shlex.quote(value)}")


def main() -> None:
    """Entry point: errors of ours are one line, not a traceback."""
    try:
        app()
    except T2VError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
