"""Addresses that a browser can open, in Markdown: of an MLflow run, of what is in the store, of Dask's page.

An address that no browser can open (a folder, a file, a database) is shown as it is. None shows what it may hold of a
user and a password.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from flows._settings import mlflow_page, store_console

__all__ = ["linked", "mlflow_link", "store_link", "without_secret"]


def without_secret(url: str) -> str:
    """An address without user, password and options."""
    shown = re.sub(r"://[^/@\s]*@", "://", url)
    return shown.partition("?")[0] if "://" in shown else shown


def linked(text: str, address: str) -> str:
    """A Markdown link where a browser can open the address, else the address as code."""
    shown = without_secret(address)
    return f"[{text}]({shown})" if shown.startswith(("http://", "https://")) else f"`{shown}`"


def mlflow_link(experiment: str, run: str, uri: str) -> str:
    """Page of a run where MLflow is a server, else the database it is in.

    Args:
        experiment: its id.
        run: its id.
        uri: MLflow's tracking URI.
    """
    page = without_secret(mlflow_page()).rstrip("/")
    if page.startswith(("http://", "https://")):
        return f"{page}/#/experiments/{quote(experiment)}/runs/{quote(run)}"
    return without_secret(uri)


def store_link(path: str) -> str:
    """Page of an object or folder in the store's console where it has one, else its path."""
    parts = urlsplit(path)
    console = store_console().rstrip("/")
    if parts.scheme not in ("s3", "s3a") or not console:
        return without_secret(path)
    key = quote(parts.path.lstrip("/"))
    if console.startswith("https://s3.console.aws.amazon.com"):
        folder = not path.rsplit("/", 1)[-1].count(".")
        where = console.replace("/s3/object", "/s3/buckets") if folder else console
        return f"{where}/{parts.netloc}?prefix={key}{'/' if folder else ''}"
    return f"{console}/{parts.netloc}/{key}"
