"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["NameOption", "StoreOption"]

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", metavar="URL", help="Folder or s3://bucket/prefix. Default: T2V_STORE, else runs/NAME/store."
    ),
]
NameOption = Annotated[str, typer.Option("--name", help="Name of the pipeline's config.")]
