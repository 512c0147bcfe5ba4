"""A headless Chromium, where this machine has one: the report page is opened in it as a person would."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

__all__ = ["NAMES", "chromium", "missing"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _path() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def missing() -> str:
    """What is lacking for a browser, and how to get it; empty where nothing is."""
    if find_spec("playwright") is None:
        return "playwright is not installed: pip install 't2v[dev]'"
    if _path() is None:
        return f"no Chromium on the PATH (looked for {', '.join(NAMES)}): on Debian, apt-get install chromium"
    return ""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright's, with an empty profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, and in most containers, Chromium has no sandbox to use; the pages are our own.
        browser = playwright.chromium.launch(executable_path=_path(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
