"""Automations that tell of trouble, from a file to a Prefect server; their webhook's address is a secret there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from t2v_core.errors import ConfigError

__all__ = ["BLOCK", "apply_automations", "read_automations"]

BLOCK = "t2v-alerts"
"""Name of the Webhook block that messages go to."""


def read_automations(path: str | Path) -> list[dict[str, Any]]:
    """The automations of a YAML file.

    Raises:
        ConfigError: no such file, or it holds no list `automations`.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read automations from {str(path)!r}: {error}") from error
    found = content.get("automations") if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(a, dict) for a in found):
        raise ConfigError(f"{path} holds no list `automations`; see infra/automations/nightly.yaml")
    return found


def _webhook(url: str) -> str:
    """Save the block that holds the address, or find the one that is there; its id."""
    from prefect.blocks.webhook import Webhook

    if url:
        return str(Webhook(method="POST", url=url, headers={"Content-Type": "application/json"}).save(BLOCK, True))
    try:
        return str(Webhook.load(BLOCK)._block_document_id)
    except ValueError as error:
        raise ConfigError(
            f"the Prefect server has no Webhook block {BLOCK!r} yet; set T2V_ALERT_URL to what takes messages"
        ) from error


def apply_automations(path: str | Path, url: str) -> list[tuple[str, str]]:
    """Create the file's automations on the Prefect server, or bring those of the same names up to date.

    Args:
        path: of the file.
        url: address of the webhook; empty: the one that the server knows already.

    Returns:
        (name, created or updated) of each.

    Raises:
        ConfigError: the file does not fit, or no address is known.
    """
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import AutomationCore

    specs, block = read_automations(path), ""
    parsed = []
    for spec in specs:
        actions = []
        for action in spec.get("actions", []):
            filled = {k: v for k, v in action.items() if k != "block"}
            if "block" in action:
                block = block or _webhook(url)
                filled["block_document_id"] = block
            actions.append(filled)
        try:
            parsed.append(AutomationCore.model_validate({**spec, "actions": actions}))
        except ValidationError as error:
            raise ConfigError(f"{path}: automation {spec.get('name', '?')!r} does not fit: {error}") from error
    done = []
    with get_client(sync_client=True) as client:
        for automation in parsed:
            there = client.read_automations_by_name(automation.name)
            if there:
                client.update_automation(there[0].id, automation)
            else:
                client.create_automation(automation)
            done.append((automation.name, "updated" if there else "created"))
    return done
