"""Servers for MLflow's client: a real one, one that only fails, one that dies on the way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PATIENCE = 120.0  # s; a new database takes its time on a busy machine


@contextmanager
def mlflow(folder: Path) -> Iterator[str]:
    """A real MLflow server with its database in a folder; yields its address."""
    with _server(folder) as (address, _):
        yield address


@contextmanager
def failing() -> Iterator[str]:
    """A server that answers everything with HTTP 500."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_error(500)

    with _serving(answer) as address:
        yield address


@contextmanager
def dying(folder: Path, requests: int) -> Iterator[tuple[str, list[str]]]:
    """A real MLflow server that is killed with signal 9 once it has answered so many requests.

    Yields its address and the requests it has answered.
    """
    with _server(folder) as (real, process):
        answered: list[str] = []

        def forward(handler: BaseHTTPRequestHandler) -> None:
            body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
            request = urllib.request.Request(
                real + handler.path, data=body or None, method=handler.command,
                headers={"Content-Type": handler.headers.get("Content-Type") or "text/plain"},
            )  # fmt: skip
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    status, content = response.status, response.read()
            except urllib.error.HTTPError as error:  # the server's own answer, too
                status, content = error.code, error.read()
            except OSError:
                handler.close_connection = True
                return
            answered.append(f"{handler.command} {handler.path.partition('?')[0]}")
            if len(answered) == requests:
                os.killpg(process.pid, signal.SIGKILL)
            handler.send_response(status)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)

        with _serving(forward) as address:
            yield address, answered


@contextmanager
def _server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1",
             "--artifacts-destination", str(folder / "artifacts"), "--port", str(port)]  # fmt: skip
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for(f"{address}/health")
        yield address, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _serving(answer: object) -> Iterator[str]:
    """A server of this process that answers every request by one function."""
    methods = {f"do_{verb}": answer for verb in ("GET", "POST", "PUT", "PATCH", "DELETE")}
    methods["log_message"] = lambda *_: None
    handler = type("Handler", (BaseHTTPRequestHandler,), methods)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
