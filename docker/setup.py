"""First steps on a new stack, safe to repeat: the bucket, the work pool, the deployments.

Runs in the image as `python docker/setup.py`, from the folder that has prefect.yaml, once everything is up. It reads
T2V_STORE, the usual AWS variables, PREFECT_API_URL and PREFECT_API_AUTH_STRING, and prints no secret.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from flows._settings import store_url
from flows._store import Store
from t2v_core.errors import StoreError

__all__ = ["main", "make_bucket", "parser"]

_THERE = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def make_bucket(url: str) -> bool:
    """Create the store's bucket where it is missing.

    Returns:
        Whether it was created.

    Raises:
        ClientError: the object store refused.
    """
    protocol, _, rest = url.partition("://")
    if protocol not in ("s3", "s3a"):
        return False
    try:
        boto3.client("s3").create_bucket(Bucket=rest.split("/")[0])
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in _THERE:
            raise
        return False
    return True


def _wait_for_bucket(url: str, seconds: float) -> None:
    """An object store that has just begun may not answer, or not know its credentials yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            made = make_bucket(url)
            Store(url).check_writable()
            print(f"store {url}: {'bucket created' if made else 'bucket is there'}, writable, creates conditionally")
            return
        except (BotoCoreError, ClientError, StoreError) as error:
            if time.monotonic() > deadline:
                raise
            print(f"store {url}: not yet ({type(error).__name__})", flush=True)
            time.sleep(2)


def _prefect(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _pool(name: str, kind: str, template: str) -> None:
    if _prefect("work-pool", "inspect", name).returncode == 0:
        print(f"pool {name}: is there")
        return
    more = ["--base-job-template", template] if template else []
    made = _prefect("work-pool", "create", name, "--type", kind, *more)
    if made.returncode:
        raise SystemExit(f"pool {name}: {made.stdout}{made.stderr}")
    print(f"pool {name}: created, of type {kind}")


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pool", default="t2v", help="name of the work pool, as in prefect.yaml")
    options.add_argument("--pool-type", default="process", choices=["process", "kubernetes"])
    options.add_argument("--base-job-template", default="", help="JSON file of a kubernetes pool's job")
    options.add_argument("--wait", type=float, default=120, help="seconds to wait for the object store")
    return options


def main() -> None:
    """Set up what T2V_STORE and PREFECT_API_URL point at."""
    options = parser().parse_args()
    _wait_for_bucket(store_url("", "t2v"), options.wait)
    _pool(options.pool, options.pool_type, options.base_job_template)
    deployed = _prefect("deploy", "--all")
    if deployed.returncode:
        raise SystemExit(f"deployments: {deployed.stdout}{deployed.stderr}")
    print("deployments: all of prefect.yaml")


if __name__ == "__main__":
    main()
