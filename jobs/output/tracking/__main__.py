"""`python -m jobs.output.tracking OUT/run.json` (or OUT/tune.json): log a finished run.

`python -m jobs.output.tracking --baseline EXPERIMENT FOLDER` fetches the table per query of the
experiment's latest passing run.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from jobs.output.tracking.client import NOTHING, SERVER, WAIT
from jobs.output.tracking.runs import artifacts_of, find_baseline, import_ahead, log_run
from jobs.output.tracking.uris import resolve_uri
from jobs.runtime.errors import DONE, NOT_TRACKED, REFUSED
from jobs.runtime.redaction import MASK, masked, secrets_of

_CONNECT_LIMIT: Final = 5.0  # s
# Characters; urllib3 names the cause last, behind the address and the path it tried.
_LONGEST_MESSAGE: Final = 1000
# MLflow retries HTTP for minutes by default.
_PATIENCE: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def main(argv: Sequence[str]) -> int:
    """Log a finished run, or log it again; or fetch a baseline."""
    os.environ.update({key: os.environ.get(key, value) for key, value in _PATIENCE.items()})
    if list(argv) == [WAIT]:
        import_ahead(os.environ[SERVER])
        question = sys.stdin.read()
        return main(json.loads(question)) if question else DONE
    fetching = len(argv) == 3 and argv[0] == "--baseline"
    if not fetching and (len(argv) != 1 or argv[0].startswith("-")):
        sys.stderr.write("usage: python -m jobs.output.tracking OUT/run.json\n")
        return REFUSED
    record: dict[str, Any] = {}
    run_json = Path(argv[0])
    if not fetching:
        try:
            record = json.loads(run_json.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            sys.stderr.write(
                f"{run_json} is not a run's record; name the run.json of a finished run\n"
            )
            return REFUSED
    if SERVER not in os.environ:
        recorded = record.get("config", {}).get("mlflow", {}).get("tracking_uri")
        if MASK in (recorded or ""):
            sys.stderr.write(
                f"{run_json} holds the server's address without its password ({recorded}); set "
                f"{SERVER} to the whole address\n"
            )
            return REFUSED
        os.environ[SERVER] = resolve_uri(recorded)
    beside = [run_json.with_name(name) for name in artifacts_of(record)]
    try:
        if os.environ[SERVER].startswith(("http://", "https://")):
            _connect(os.environ[SERVER])
        if fetching:
            said = str(find_baseline(argv[1], Path(argv[2])) or NOTHING)
        else:
            said = log_run(record, [file for file in beside if file.exists()], run_json)
    except Exception as error:  # the client raises many kinds; none may pass unreported
        said = masked(f"{type(error).__name__}: {error}", secrets_of(os.environ))
        sys.stderr.write(f"MLflow: {said.splitlines()[0][:_LONGEST_MESSAGE]}\n")
        return NOT_TRACKED
    sys.stdout.write(f"{said}\n")
    return DONE


def _connect(uri: str) -> None:
    """Find out within seconds that nobody listens.

    Raises:
        OSError: if there is no connection.
    """
    parts = urlsplit(uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_LIMIT).close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
