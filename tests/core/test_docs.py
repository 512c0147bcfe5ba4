"""The documentation says what the code does: every config key with its words, links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from t2v_core import config

ROOT = Path(__file__).parents[2]
MODELS = [getattr(config, n) for n in config.__all__ if n.endswith(("Spec", "Rule", "Config", "Expert"))]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def plain(text: str) -> str:
    return re.sub(r"[`|\\\s]", "", text)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_every_config_key_is_documented_in_the_codes_words(model: type[config.FrozenModel]) -> None:
    page = plain((ROOT / "docs" / "configuration.md").read_text())
    for name, field in model.model_fields.items():
        assert field.description, name
        assert plain(name) + plain("") in page, name
        assert plain(field.description) in page, (name, field.description)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


def test_no_placeholder_is_left() -> None:
    for page in PAGES:
        assert "<!-- DEMO TABLE -->" not in page.read_text(), page
