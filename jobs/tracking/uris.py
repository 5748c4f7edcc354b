"""Where runs go, and how an address is shown without what must stay secret."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_SQLITE: Final = "sqlite:///"
DEFAULT_URI: Final = f"{_SQLITE}mlflow.db"


def resolve_uri(tracking_uri: str | None) -> str:
    """Where runs go: as configured, else MLFLOW_TRACKING_URI, else a database in this folder.

    The path of a database is made absolute, so that a replay from another folder finds it.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    path = uri.removeprefix(_SQLITE)
    return uri if path == uri or path.startswith("/") else f"{_SQLITE}{Path(path).absolute()}"


def is_local(uri: str) -> bool:
    """Whether runs go to a database or folder of this machine, and not to a server."""
    return uri.startswith(_SQLITE) or "://" not in uri or uri.startswith("file:")


def masked(uri: str) -> str:
    """A URI without user, password and query, where tokens travel.

    `abfss://CONTAINER@ACCOUNT/...` and `wasbs://` name a place before the @, and keep it.
    """
    parts = urlsplit(uri)._replace(query="", fragment="")
    if "@" in parts.netloc and parts.scheme not in ("abfs", "abfss", "wasb", "wasbs"):
        parts = parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}")
    return parts.geturl() if "://" in uri and not uri.startswith(_SQLITE) else uri
