"""Asking MLflow from a process of its own, with a time limit."""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from jobs.config import MlflowConfig
from jobs.errors import DONE, RefusedError
from jobs.masking import MASK, masked
from jobs.tracking.uris import is_local, resolve_uri

SERVER: Final = "MLFLOW_TRACKING_URI"  # the variable that names the server to MLflow
NOTHING: Final = "none"  # printed where an experiment has no passing run
_LOCAL_LIMIT: Final = 300.0  # s; a new sqlite database takes its time on a busy machine


class TrackingError(Exception):
    """The run could not be logged; the data is whole."""


def replay_command(run_json: str, tracking_uri: str | None) -> str:
    """The command that logs a finished run again, and what has to be set for it.

    run.json holds no password, so the address of a server that needs one has to be given anew.
    """
    words = [sys.executable, "-m", "jobs.tracking", run_json]
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
    return _in_its_own_process([str(run_json)], tracking_uri, timeout)


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
        said = _in_its_own_process(
            ["--baseline", experiment, folder], config.tracking_uri, config.timeout
        )
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


def _in_its_own_process(arguments: list[str], tracking_uri: str | None, timeout: float) -> str:
    """Run this module in a process with a time limit; return the last line it prints."""
    uri = resolve_uri(tracking_uri)
    limit = max(timeout, _LOCAL_LIMIT) if is_local(uri) else max(1.0, timeout - 1.0)
    environment = {**os.environ, SERVER: uri}
    environment["PYTHONPATH"] = os.pathsep.join([_package_root(), *sys.path])
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "jobs.tracking", *arguments],
            env=environment,
            timeout=limit,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise TrackingError(f"{masked(uri)}: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise TrackingError(f"{masked(uri)}: no answer in {timeout:.0f} s") from None
    if ended.returncode != DONE:
        said = ended.stderr.strip().splitlines()
        raise TrackingError(f"{masked(uri)}: {said[-1] if said else 'the client failed'}")
    return ended.stdout.strip().splitlines()[-1]


def _package_root() -> str:
    return str(Path(__file__).parent.parent.parent)
