"""`make audit`: known vulnerabilities of every package in constraints.txt, by pip-audit.

pip-audit asks PyPI for advisories. Where PyPI does not answer that question (no network, or a mirror without its JSON
API), pip-audit skips the package and still ends well. Here that is a failure, told apart from "nothing is known".
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["main", "verdict"]

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
FOUND, NOT_ASKED = 1, 2


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """Exit status and words for pip-audit's JSON report.

    Args:
        report: with `dependencies`, each with `name` and either `version` and `vulns`, or `skip_reason`.

    Returns:
        0 where all packages were asked about and nothing is known; 1 where something is known; 2 where some could not
        be asked about.
    """
    asked = [d for d in report["dependencies"] if "skip_reason" not in d]
    skipped = [d for d in report["dependencies"] if "skip_reason" in d]
    lines = [
        f"{d['name']} {d['version']}: {v['id']}; mended in {', '.join(v['fix_versions']) or 'no release yet'}"
        for d in asked
        for v in d["vulns"]
    ]
    if lines:
        more = f"; {len(skipped)} could not be asked about" if skipped else ""
        return FOUND, "\n".join([*lines, f"audit: {len(lines)} known vulnerabilities in {len(asked)} packages{more}"])
    if skipped:
        return NOT_ASKED, (
            f"audit: {len(skipped)} of {len(report['dependencies'])} packages could not be asked about "
            f"({skipped[0]['skip_reason']}). This says nothing of their safety: PyPI's JSON API must be reachable"
        )
    return 0, f"audit: {len(asked)} packages, no known vulnerability"


def main() -> int:
    """Audit constraints.txt."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        reason = done.stderr.strip().splitlines()[-1:] or ["no output"]
        print(f"audit: pip-audit could not ask for advisories ({reason[0]}); it needs a network", file=sys.stderr)
        return NOT_ASKED
    status, words = verdict(report)
    print(words, file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
