"""What a store's failure means, and how to mend it, in words without anything secret."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

from t2v_core.errors import StoreError

__all__ = ["error_code", "explained", "telling"]


@contextlib.contextmanager
def telling(url: str, action: str, key: str) -> Iterator[None]:
    """Turn whatever the file system raises into a `StoreError` that names action, key, store and remedy."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # fsspec's backends raise whatever their clients raise
        raise StoreError(f"cannot {action} {key!r} in store {url}: {explained(error)}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__  # not __context__, which may be the caller's own trouble


def error_code(error: BaseException) -> str:
    """The object store's own word for the failure (``NoSuchBucket``), or an empty string."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


_REMEDIES = {
    "no such object; has the step that writes it run, and is this the right store?": ("NoSuchKey", "FileNotFoundError"),
    "the bucket is missing: create it, or mend the store's URL": ("NoSuchBucket",),
    "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a "
    "role": ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
    "the credentials were refused: check the key, its secret and its date, and that they belong to this endpoint "
    "(AWS_ENDPOINT_URL)": ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
    "permission denied: for S3 allow GetObject, PutObject, DeleteObject and ListBucket here; for a folder check its "
    "owner and mode": ("AccessDenied", "403", "PermissionError"),
    "nobody answers: check AWS_ENDPOINT_URL, and that the object store runs": (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ConnectionRefusedError",
    ),
    "the object store is overloaded, and stayed so through all retries: wait, lower T2V_UNITS_IN_FLIGHT, run again; "
    "what is in the store is whole, and stays": ("SlowDown", "ServiceUnavailable", "InternalError", "503"),
    "the object store took a request and said nothing for T2V_STORE_TIMEOUT seconds, at every retry: see its log and "
    "its disk, and run again; what is in the store is whole, and stays": ("ReadTimeoutError", "FSTimeoutError"),
    "the clock of this machine and that of the object store differ by minutes: set them by NTP": (
        "RequestTimeTooSkewed",
        "RequestExpired",
    ),
    "a part of the path is a file, not a folder: give the store another folder": ("NotADirectoryError",),
    "the object store cannot create conditionally (If-None-Match): use one that can": ("NotImplemented", "501"),
    "the disk is full: free some room and run again; what is in the store is whole, and stays": (
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
    ),
    "the package for this kind of store is missing: install it": ("ImportError", "ModuleNotFoundError"),
}
_REMEDY = {name: remedy for remedy, names in _REMEDIES.items() for name in names}


def explained(error: BaseException) -> str:
    """What went wrong and how to mend it, without anything secret."""
    names = [error_code(error), *(type(link).__name__ for link in _chain(error))]
    names += [errno.errorcode.get(getattr(link, "errno", None) or 0, "") for link in _chain(error)]
    remedy = next((_REMEDY[name] for name in names if name in _REMEDY), "")
    said = getattr(error, "strerror", None) or str(error)
    # An endpoint may hold user:password@, and some servers repeat the access key.
    said = re.sub(r"://[^/@\s]*@", "://", said)
    said = re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{12,}\b", "(access key)", said)
    return f"{said or type(error).__name__} [{names[0] or type(error).__name__}]" + (f"; {remedy}" if remedy else "")
