"""Asking MLflow from a process of its own, with a time limit."""

from __future__ import annotations

import atexit
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from jobs.config import MlflowConfig
from jobs.output.tracking.uris import is_local, resolve_uri
from jobs.runtime.errors import DONE, RefusedError
from jobs.runtime.redaction import MASK, masked

SERVER: Final = "MLFLOW_TRACKING_URI"  # the variable that names the server to MLflow
WAIT: Final = "--wait"  # for a question, which comes as JSON and with the end of stdin
NOTHING: Final = "none"  # printed where an experiment has no passing run
_LOCAL_LIMIT: Final = 300.0  # s; a new sqlite database takes its time on a busy machine


class TrackingError(Exception):
    """The run could not be logged; the data is whole."""


def replay_command(run_json: str, tracking_uri: str | None) -> str:
    """The command that logs a finished run again, and what has to be set for it.

    run.json holds no password, so the address of a server that needs one has to be given anew.
    """
    words = [sys.executable, "-m", "jobs.output.tracking", run_json]
    command = f"PYTHONPATH={shlex.quote(_package_root())} {shlex.join(words)}"
    if MASK not in masked(resolve_uri(tracking_uri)):
        return command
    return f"{command}\n(with the server's whole address, password included, in {SERVER})"


def track(run_json: Path, tracking_uri: str | None, timeout: float) -> str:
    """Log a finished run in a process of its own.

    Args:
        run_json: local file with the run's record.
        tracking_uri: as configured.
        timeout: longest to wait for a server [s]; a local database may take longer.

    Returns:
        MLflow's run id.

    Raises:
        TrackingError: if the server could not be reached in time, or refused.
    """
    with Client(tracking_uri, timeout) as client:
        return client.ask(str(run_json))


def fetch_baseline(config: MlflowConfig, experiment: str) -> Path | None:
    """The table per query of an experiment's latest passing run, as a local folder.

    Returns:
        None if the experiment has no passing run yet, which only the one that this run will be
        logged to may be.

    Raises:
        RefusedError: if it cannot be fetched, or there is no such experiment.
    """
    folder = tempfile.mkdtemp(prefix="spark-rerank-baseline-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        with Client(config.tracking_uri, config.timeout) as client:
            said = client.ask("--baseline", experiment, folder)
    except TrackingError as error:
        raise RefusedError(f"evaluation.baseline mlflow:{experiment}: {error}") from None
    if said != NOTHING:
        return Path(said)
    if experiment != config.experiment:
        raise RefusedError(
            f"evaluation.baseline mlflow:{experiment}: no such experiment, or no passing run in "
            "it; check the name and mlflow.tracking_uri"
        )
    return None


class Client:
    """A process that asks MLflow one thing. Use it in a `with`, which ends the process.

    Args:
        tracking_uri: as configured.
        timeout: longest to wait for a server [s]; a local database may take longer.
    """

    def __init__(self, tracking_uri: str | None, timeout: float) -> None:
        """Nothing is started yet."""
        self._uri = resolve_uri(tracking_uri)
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process ahead: it imports MLflow, and reaches for nothing before it is asked.

        What goes wrong here is for `ask` to report.
        """
        environment = {**os.environ, SERVER: self._uri}
        environment["PYTHONPATH"] = os.pathsep.join([_package_root(), *sys.path])
        with suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs.output.tracking", WAIT],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def ask(self, *arguments: str) -> str:
        """What `python -m jobs.output.tracking ARGUMENTS` prints last; the process ends with it.

        Raises:
            TrackingError: if the server could not be reached in time, or refused.
        """
        if self._process is None:
            self.start()
        name = masked(self._uri)
        if self._process is None:
            raise TrackingError(f"{name}: no process could be started")
        local = is_local(self._uri)
        limit = max(self._timeout, _LOCAL_LIMIT) if local else max(1.0, self._timeout - 1.0)
        try:
            said, errors = self._process.communicate(json.dumps(arguments), limit)
        except subprocess.TimeoutExpired:
            raise TrackingError(f"{name}: no answer in {self._timeout:.0f} s") from None
        if self._process.returncode != DONE:
            lines = errors.strip().splitlines()
            raise TrackingError(f"{name}: {lines[-1] if lines else 'the client failed'}")
        return said.strip().splitlines()[-1]

    def __enter__(self) -> Client:
        """Start nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def _package_root() -> str:
    return str(Path(__file__).parents[3])
