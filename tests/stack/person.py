"""What a person does with a stack, as code; and small data for it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from infra.stack.health import call
from infra.stack.launcher import Stack
from infra.stack.services import ROOT, flow_environment

__all__ = ["ENDED", "Person", "draw_shapes", "small_config"]

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def _flows_conftest() -> Any:
    """`tests/flows/conftest.py`, whose small pipeline is the stack's too; several files are named conftest."""
    path = Path(__file__).parents[1] / "flows" / "conftest.py"
    spec = importlib.util.spec_from_file_location("flows_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_shapes(root: Path, seed: int, kinds: tuple[str, ...] = ("square", "disc", "cross")) -> Path:
    """A folder of drawn shapes, a subfolder for each kind."""
    rng, shape = np.random.default_rng(seed), _flows_conftest().shape
    for kind in kinds:
        (root / kind).mkdir(parents=True)
        for i in range(24):
            shape(kind, rng).save(root / kind / f"{i:02d}.png")
    return root


def small_config(folder: Path, **changes: Any) -> str:
    """The small pipeline of the flows' tests on clean data, with all ten digits against the rest: 16 tasks."""
    content = _flows_conftest().settings(draw_shapes(folder / "shapes", 0))
    content["sources"] = content["sources"][:2]
    content["library"]["rules"][1]["values"] = [str(d) for d in range(10)]
    content.update(changes)
    # Below the checkout, where flows run: a short name in the form and on the pages.
    path = ROOT / "runs" / folder.name / "mini.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return str(path.relative_to(ROOT))


class Person:
    """What a person does in the pages of a stack, by the calls that the pages make."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.environment = flow_environment(stack.layout)

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask Prefect; a server that is just coming back is asked again for a while."""
        for seconds in (1, 2, 4, 8, None):
            try:
                return call(f"{self.stack.layout.api}{path}", body, timeout=30)
            except OSError as error:
                code = getattr(error, "code", 503)
                if seconds is None or code < 500:
                    raise
                time.sleep(seconds)
        raise AssertionError("not reached")

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.api(f"/deployments/name/{name}"))

    def run(self, name: str, **params: Any) -> str:
        """Press Run on a deployment with these parameters changed; the id of the flow run."""
        deployment = self.deployment(name)
        body = {"parameters": {"params": {**deployment["parameters"].get("params", {}), **params}}}
        return str(self.api(f"/deployments/{deployment['id']}/create_flow_run", body)["id"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.api(f"/flow_runs/{run}")["state"])

    def wait(self, what: str, ready: Callable[[], Any], seconds: float) -> Any:
        """Ask until the answer is true.

        Raises:
            AssertionError: not in so many seconds: a test's deadline.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = ready()
            if value:
                return value
            time.sleep(0.5)
        raise AssertionError(f"{what} did not happen in {seconds:.0f} s: {self.stack.ills()}")

    def end(self, run: str, seconds: float = 400) -> dict[str, Any]:
        """Wait for the end of a run; its last state."""

        def ended() -> Any:
            state = self.state(run)
            return state if state["type"] in ENDED else None

        return dict(self.wait(f"the end of run {run}", ended, seconds))

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """Newest artifact of each key of a run and the runs inside it."""
        body = {"flow_runs": {"id": {"any_": self.family(run)}}, "sort": "CREATED_DESC", "limit": 200}
        return {a["key"]: a for a in reversed(self.api("/artifacts/filter", body))}

    def family(self, run: str) -> list[str]:
        """The run, and the runs of the flows that it called."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}, "limit": 200}
        return [run, *(r["id"] for r in self.api("/flow_runs/filter", body))]

    def units(self, run: str, stage: str) -> list[str]:
        """Names of the units that ran in a stage of a run."""
        body = {
            "flow_runs": {"id": {"any_": self.family(run)}},
            "task_runs": {"tags": {"all_": [stage.replace(" ", "-")]}},
            "limit": 200,
        }
        return sorted(r["name"] for r in self.api("/task_runs/filter", body))
