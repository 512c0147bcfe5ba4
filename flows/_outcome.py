"""How a stage went, and when that is a failure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

__all__ = ["StageFailed", "StageResult", "failed_in_words", "slug", "too_many_failed"]


def slug(stage: str) -> str:
    """A stage's name as Prefect's tags and artifact keys want it."""
    return stage.lower().replace(" ", "-")


class StageResult(BaseModel):
    """How a stage went."""

    stage: str
    done: int = 0
    reused: int = 0
    failed: int = 0
    seconds: float = 0.0
    busy: float = Field(0.0, description="Seconds that workers spent in units, all workers together.")
    devices: dict[str, float] = Field(default_factory=dict, description="The same by device: cpu and gpu.")
    threads: int = Field(0, description="Units that could run at once.")
    failures: list[tuple[str, str]] = Field(default_factory=list, description="Unit and reason.")
    notes: list[str] = Field(default_factory=list)
    before: list[StageResult] = Field(default_factory=list, description="What was prepared for this stage.")

    @property
    def parts(self) -> list[StageResult]:
        """What was prepared for the stage, and the stage."""
        return [*(part for result in self.before for part in result.parts), self]

    def line(self) -> str:
        """In words."""
        told = (
            f"{self.stage}: {self.done} done, {self.reused} there already, {self.failed} failed, {self.seconds:.0f} s"
        )
        if self.seconds > 10 and self.threads:
            told += f", {self.threads} workers busy for {self.busy / self.seconds / self.threads:.0%} of it"
        return told


class StageFailed(RuntimeError):
    """More units of a stage failed than the config allows; the flow ends Failed, and says so."""


def too_many_failed(failed: int, total: int, share: float) -> bool:
    """Whether a stage with so many failures may not be green: more than the share that is allowed, or all there is."""
    return failed > share * total or 0 < total <= failed


def failed_in_words(what: str, failures: Sequence[tuple[str, str]], total: int, share: float) -> str:
    """Of a stage that failed, with the first few reasons."""
    shown = "; ".join(f"{unit}: {reason}" for unit, reason in failures[:3])
    allowed = f"more than the {share:.0%} that max_failed_share allows" if len(failures) > share * total else "all"
    return f"{what} failed, {allowed}. {shown}"
