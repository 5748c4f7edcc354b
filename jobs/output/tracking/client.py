"""Ask MLflow, about runs from a process of its own with a time limit."""

import atexit
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
from jobs.runtime.errors import DONE, REFUSED, RefusedError
from jobs.runtime.redaction import MASK, masked

SERVER: Final = "MLFLOW_TRACKING_URI"  # the variable that names the server to MLflow
DATABASE: Final = "sqlite:///"
NOTHING: Final = "none"  # printed where an experiment has no passing run
_DEFAULT_URI: Final = f"{DATABASE}mlflow.db"
_LOCAL_TIMEOUT: Final = 300.0  # s; a new sqlite database takes its time on a busy machine
_CHECK_TIMEOUT: Final = 10.0  # s


class TrackingError(Exception):
    """The run could not be logged; the data is whole."""


def resolve_uri(tracking_uri: str | None) -> str:
    """Return where runs go: as configured, else MLFLOW_TRACKING_URI, else a database here.

    The path of a database is made absolute, so that a replay from another folder finds it.
    """
    uri = tracking_uri or os.environ.get(SERVER) or _DEFAULT_URI
    path = uri.removeprefix(DATABASE)
    return uri if path == uri or path.startswith("/") else f"{DATABASE}{Path(path).absolute()}"


def replay_command(run_json: str, tracking_uri: str | None) -> str:
    """Return the command that logs a finished run again, and what has to be set for it.

    run.json holds no password, so the address of a server that needs one has to be given anew.
    """
    words = [sys.executable, "-m", "jobs.output.tracking", run_json]
    command = f"PYTHONPATH={shlex.quote(_package_root())} {shlex.join(words)}"
    if MASK not in masked(resolve_uri(tracking_uri)):
        return command
    return f"{command}\n(with the server's whole address, password included, in {SERVER})"


def track(run_json: Path, config: MlflowConfig) -> str:
    """Log the finished run of a local record and return MLflow's id of it, or a TrackingError."""
    return _ask(config, config.timeout, str(run_json))


def fetch_baseline(config: MlflowConfig, experiment: str) -> Path | None:
    """Return the table per query of an experiment's latest passing run, as a local folder.

    None if it has no passing run yet, which is refused of any but the experiment of this run.
    """
    folder = tempfile.mkdtemp(prefix="spark-rerank-baseline-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        said = _ask(config, config.timeout, "--baseline", experiment, folder)
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


def fetch_model(tracking_uri: str | None, uri: str, folder: Path) -> Path:
    """Fetch a registered model (`models:/NAME/VERSION`, `models:/NAME@ALIAS`) into a folder.

    Raises:
        RefusedError: if there is no registry, or no such model in it.
    """
    import mlflow

    server = resolve_uri(tracking_uri)
    elsewhere = os.environ.get("MLFLOW_REGISTRY_URI")
    if not elsewhere and _is_new(server):  # MLflow would make one, and find nothing in it
        raise RefusedError(
            f"model.name={uri}: there is no registry in {masked(server)}; set mlflow.tracking_uri "
            f"or {SERVER} to the server or database that has it"
        )
    mlflow.set_tracking_uri(server)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except (mlflow.MlflowException, OSError) as error:
        code = getattr(error, "error_code", type(error).__name__)
        raise RefusedError(
            f"model.name={uri} cannot be fetched from the registry in {masked(server)} ({code}); "
            "check its name, its version or alias, and mlflow.tracking_uri"
        ) from None


def refuse_tracking(config: MlflowConfig) -> None:
    """Refuse an experiment that MLflow cannot log to; a server that is down is no reason."""
    if config.enabled and not _is_new(resolve_uri(config.tracking_uri)):
        with suppress(TrackingError):
            _ask(config, min(config.timeout, _CHECK_TIMEOUT), "--check", config.experiment)


def _is_new(uri: str) -> bool:
    return uri.startswith(DATABASE) and not Path(uri.removeprefix(DATABASE)).exists()


def _ask(config: MlflowConfig, timeout: float, *arguments: str) -> str:
    """Return what `python -m jobs.output.tracking ARGUMENTS` prints last.

    Raises:
        TrackingError: if the server could not be reached in time, or refused.
        RefusedError: if the configuration has to be changed.
    """
    uri = resolve_uri(config.tracking_uri)
    local = uri.startswith((DATABASE, "file:", "/", "."))
    limit = max(timeout, _LOCAL_TIMEOUT) if local else max(1.0, timeout - 1.0)
    environment = {**os.environ, SERVER: uri}
    environment["PYTHONPATH"] = os.pathsep.join([_package_root(), *sys.path])
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "jobs.output.tracking", *arguments],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TrackingError(f"{masked(uri)}: no answer in {limit:.0f} s") from None
    except OSError as error:
        raise TrackingError(f"no process could be started ({error.strerror})") from None
    errors = ended.stderr.strip().splitlines() or ["the client failed"]
    if ended.returncode == REFUSED:
        raise RefusedError(f"mlflow.tracking_uri={masked(uri)}: {errors[-1]}")
    if ended.returncode != DONE:
        raise TrackingError(f"{masked(uri)}: {errors[-1]}")
    return ended.stdout.strip().splitlines()[-1]


def _package_root() -> str:
    return str(Path(__file__).parents[3])
