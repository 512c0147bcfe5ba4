"""Mark what is old in MLflow as deleted, so that `mlflow gc` takes it: runs, their logged models, model versions.

    python infra/backup/prune_mlflow.py TRACKING_URI --keep 20 [--delete]
    mlflow gc --backend-store-uri DATABASE_URL --tracking-uri TRACKING_URI

What stays: the newest runs of each experiment, and whatever an alias (``champion``) of a registered model points at.
Without ``--delete`` it only says what it would do. `mlflow gc` by itself looks at no alias.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from mlflow import MlflowClient, search_logged_models, set_tracking_uri

__all__ = ["prune"]


def _runs(client: Any, experiment: str) -> Iterator[Any]:
    """Newest first."""
    token = None
    while True:
        page = client.search_runs(
            [experiment], order_by=["attributes.start_time DESC"], max_results=500, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def prune(uri: str, keep: int, *, delete: bool) -> list[str]:
    """Delete runs, logged models and versions but for the newest runs and what has an alias.

    Args:
        uri: of the tracking server, or of its database.
        keep: runs that stay in each experiment.
        delete: whether to do it.

    Returns:
        What was deleted, or would be, a line each.
    """
    set_tracking_uri(uri)
    client, lines = MlflowClient(uri), []
    versions = [v for m in client.search_registered_models() for v in client.search_model_versions(f"name='{m.name}'")]
    aliased = {(m.name, str(v)) for m in client.search_registered_models() for v in m.aliases.values()}
    named = {v.run_id for v in versions if (v.name, str(v.version)) in aliased}
    for experiment in client.search_experiments():
        old = [run for run in list(_runs(client, experiment.experiment_id))[keep:] if run.info.run_id not in named]
        gone = {run.info.run_id for run in old}
        models = search_logged_models([experiment.experiment_id], output_format="list")
        for version in [v for v in versions if v.run_id in gone]:
            lines.append(f"version {version.version} of {version.name}")
            if delete:
                client.delete_model_version(version.name, version.version)
        for model in [m for m in models if m.source_run_id in gone]:
            lines.append(f"logged model {model.model_id}")
            if delete:
                client.delete_logged_model(model.model_id)
        for run in old:
            lines.append(f"run {run.info.run_id} of {experiment.name}")
            if delete:
                client.delete_run(run.info.run_id)
    return lines


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="MLflow's tracking server, or sqlite:///FILE")
    parser.add_argument("--keep", type=int, default=20, help="runs that stay in each experiment (default 20)")
    parser.add_argument("--delete", action="store_true", help="do it; without, it is only said")
    options = parser.parse_args()
    lines = prune(options.uri, options.keep, delete=options.delete)
    print("\n".join([*lines, f"{len(lines)} {'deleted' if options.delete else 'would be deleted; --delete does it'}"]))


if __name__ == "__main__":
    main()
