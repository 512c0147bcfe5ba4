"""Print the environment of docker/Dockerfile's base stage, for docker/image_test.sh: NAME=VALUE, one a line."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["variables"]


def variables(dockerfile: str) -> dict[str, str]:
    """The ENV instructions of the stage that all others begin with."""
    stage = dockerfile.split("AS base", 1)[1].split("\nFROM ", 1)[0].replace("\\\n", " ")
    lines = [line.removeprefix("ENV ") for line in stage.splitlines() if line.startswith("ENV ")]
    found = dict(re.findall(r"(\w+)=(\S+)", " ".join(lines)))
    found["PATH"] = found["PATH"].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
    return found


if __name__ == "__main__":
    text = Path(__file__).with_name("Dockerfile").read_text()
    print("\n".join(f"{name}={value}" for name, value in variables(text).items()))
