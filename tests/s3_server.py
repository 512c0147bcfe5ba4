"""An S3 server on loopback for tests: moto, made as strict (or as lax) as the servers it stands for.

Run as a script it prints its endpoint and serves until its standard input closes, so it never outlives the tests. It
is a process of its own because Dask workers must reach it, and so that its warnings are not the tests'.

moto looks at ``If-None-Match`` first and stores then, with room for another request in between; S3 does not. Hence one
request at a time. Bucket names ask for the quirks of other servers and accounts:

- ``readonly...``: every write is denied;
- ``lax...``: ``If-None-Match`` is ignored, as old servers do;
- ``terse...``: a failed condition is not named in the answer, as MinIO does;
- ``down...``: every request for an object is told to come again (503 SlowDown), for ever;
- ``slow...``: every answer takes a second;
- ``hung...``: requests for objects are taken, and nothing is said for a minute;
- ``refused...``: the access key is not known;
- ``skewed...``: the request's time is too far from the server's;
- ``busy...``: the first request of a kind for each object is told to come again (503 SlowDown).
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

__all__ = ["strict"]

_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_REFUSALS = {
    "/down": ("503 Slow Down", _BUSY),
    "/refused": (
        "403 Forbidden",
        b"<Error><Code>InvalidAccessKeyId</Code><Message>The key AKIAABCDEFGHIJKLMNOP does not exist.</Message></Error>",
    ),
    "/skewed": (
        "403 Forbidden",
        b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference between the request time and the current time "
        b"is too large.</Message></Error>",
    ),
}
_CONDITION = b"<Condition>If-None-Match</Condition>"


def strict(app: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]) -> Any:
    """``app`` with one request at a time, and the quirks that bucket names ask for."""
    lock = threading.Lock()
    asked: Counter[tuple[str, str]] = Counter()

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        # Creating the bucket itself ("/readonly-1") is allowed.
        if path.startswith("/readonly") and method in ("PUT", "POST", "DELETE") and path.strip("/").count("/"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(
                "403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(_DENIED)))]
            )
            return [_DENIED]
        if path.startswith("/busy") and path.strip("/").count("/"):
            asked[method, path] += 1
            if asked[method, path] == 1:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(
                    "503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(_BUSY)))]
                )
                return [_BUSY]
        if path.strip("/").count("/"):
            for start, (status, body) in _REFUSALS.items():
                if path.startswith(start):
                    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
                    return [body]
            if path.startswith(("/slow", "/hung")):
                time.sleep(1 if path.startswith("/slow") else 60)
        if path.startswith("/lax"):
            environ.pop("HTTP_IF_NONE_MATCH", None)
        begun: list[Any] = []
        with lock:
            body = b"".join(app(environ, lambda *args: begun.append(args)))  # type: ignore[arg-type]
        status, headers = begun[0][:2]
        # moto and werkzeug both name themselves, which aiohttp does not take in Python's development mode.
        headers = [(name, value) for name, value in headers if name.lower() != "server"]
        if path.startswith("/terse") and _CONDITION in body:
            body = body.replace(_CONDITION, b"")
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body))))
        start_response(status, headers)
        return [body]

    return answer


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


def main() -> None:
    """Serve on a free port until standard input closes."""
    app = strict(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
