"""`python -m jobs.output.tracking OUT/run.json` (or OUT/tune.json): log a finished run, also again.

Of a running job:
    --baseline EXPERIMENT FOLDER    fetch the table per query of the latest passing run
    --check EXPERIMENT              find out whether runs can be logged to it
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from jobs.output.tracking.client import NOTHING, SERVER, resolve_uri
from jobs.output.tracking.runs import check_experiment, find_baseline, log_run
from jobs.runtime.errors import DONE, NOT_TRACKED, REFUSED, RefusedError
from jobs.runtime.redaction import MASK, masked, secrets_of

_CONNECT_TIMEOUT: Final = 5.0  # s
_LONGEST_MESSAGE: Final = 1000  # characters; urllib3 names the cause last, behind the address
# MLflow retries HTTP for minutes by default.
_LIMITS: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def main(argv: Sequence[str]) -> int:
    """Log a finished run, check an experiment, or fetch a baseline; return the exit code."""
    os.environ.update({key: os.environ.get(key, value) for key, value in _LIMITS.items()})
    # MLflow would take the run of whoever called the job for its own; the record names it.
    os.environ.pop("MLFLOW_RUN_ID", None)
    try:
        said = _run(argv)
    except RefusedError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    except Exception as error:  # the client raises many kinds; none may pass unreported
        said = masked(f"{type(error).__name__}: {error}", secrets_of(os.environ))
        sys.stderr.write(f"MLflow: {said.splitlines()[0][:_LONGEST_MESSAGE]}\n")
        return NOT_TRACKED
    sys.stdout.write(f"{said}\n")
    return DONE


def _run(argv: Sequence[str]) -> str:
    match list(argv):
        case ["--baseline", experiment, folder]:
            _connect()
            return str(find_baseline(experiment, Path(folder)) or NOTHING)
        case ["--check", experiment]:
            _connect()
            return check_experiment(experiment)
        case [path] if not path.startswith("-"):
            record = _read(Path(path))
            _connect()
            return log_run(record, Path(path))
    raise RefusedError("usage: python -m jobs.output.tracking OUT/run.json")


def _read(run_json: Path) -> dict[str, Any]:
    """Return a record, with the server it names in the environment unless one is there."""
    try:
        record: dict[str, Any] = json.loads(run_json.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RefusedError(
            f"{run_json} is not a run's record; name the run.json of a finished run"
        ) from None
    recorded = record.get("config", {}).get("mlflow", {}).get("tracking_uri") or ""
    if SERVER not in os.environ and MASK in recorded:
        raise RefusedError(
            f"{run_json} holds the server's address without its password ({recorded}); set "
            f"{SERVER} to the whole address"
        )
    os.environ.setdefault(SERVER, resolve_uri(recorded))
    return record


def _connect() -> None:
    """Raise an OSError within seconds if nobody listens."""
    parts = urlsplit(os.environ[SERVER])
    if parts.scheme in ("http", "https"):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_TIMEOUT).close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
