"""Where runs go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

DATABASE: Final = "sqlite:///"
DEFAULT_URI: Final = f"{DATABASE}mlflow.db"


def resolve_uri(tracking_uri: str | None) -> str:
    """Where runs go: as configured, else MLFLOW_TRACKING_URI, else a database in this folder.

    The path of a database is made absolute, so that a replay from another folder finds it.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    path = uri.removeprefix(DATABASE)
    return uri if path == uri or path.startswith("/") else f"{DATABASE}{Path(path).absolute()}"


def is_local(uri: str) -> bool:
    """Whether runs go to a database or folder of this machine, and not to a server."""
    return uri.startswith(DATABASE) or "://" not in uri or uri.startswith("file:")
