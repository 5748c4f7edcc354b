"""Where what can be made again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """The user's cache folder of this project."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "spark-rerank"
