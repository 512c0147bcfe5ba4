"""How a library is read as the paper's: which tasks are a taxonomy, which attributes, which its two meta-tasks.

`rehearsal` and `paper` come along; another library needs a YAML file with these keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from t2v_core.config import FrozenModel, MetaTaskRule, explain_validation_error
from t2v_core.errors import ConfigError, UnknownNameError

__all__ = ["PROFILES", "Profile", "load_profile"]

_FOLDER = Path(__file__).parent / "profiles"
PROFILES = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
"""Names of the profiles that come along."""


class Profile(FrozenModel):
    """Rules by which tasks are read."""

    name: str = Field(description="Name of the library.")
    title: str = Field(description="What a caption calls it.")
    probe: str = Field("", description="Probe that embedded the compact results.")
    differs: str = Field("", description="What differs from the paper: data, scale, probe. For captions.")
    taxonomy: list[str] = Field(
        default_factory=list, description="Annotation columns whose tasks are places of a taxonomy."
    )
    attributes: dict[str, Literal["column", "value", "parent"]] = Field(
        default_factory=dict,
        description="Annotation columns of attribute tasks. column: its tasks all ask the same thing; value: each of "
        "its values is another thing; parent: values below one place of the taxonomy are one thing.",
    )
    twins: list[str] = Field(
        default_factory=list, description="Sources in which tasks of the same name are the same task in another domain."
    )
    violins: list[str] = Field(
        default_factory=list, description="Tasks of Fig. 3, ids or patterns; empty: the largest ones."
    )
    meta_tasks: list[MetaTaskRule] = Field(
        default_factory=list, description="In place of iNat + CUB, and of Mixed, in that order."
    )


def load_profile(name: str) -> Profile:
    """A profile by name (``paper``, ``rehearsal``) or from a YAML file.

    Raises:
        UnknownNameError: no such profile.
        ConfigError: not YAML, or it does not fit.
    """
    if name not in PROFILES and not name.endswith((".yaml", ".yml")):
        raise UnknownNameError("profile", name, list(PROFILES))
    path = _FOLDER / f"{name}.yaml" if name in PROFILES else Path(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Profile.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read a profile from {name!r}: {error}; wanted a YAML file") from error
    except ValidationError as error:
        raise explain_validation_error(error, Profile, str(name)) from error
