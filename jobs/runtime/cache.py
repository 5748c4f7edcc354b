"""User cache directory: downloads, exported models, archives to ship, records to log later.

All but the records, which are copies of what is in OUT, can be made again.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def cache() -> Path:
    """Return the user's cache directory of this project; it may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "spark-rerank"


def cached_folder(target: Path, fill: Callable[[Path], object]) -> Path:
    """Return a folder of the cache, made by `fill` and moved in whole if it is not there yet."""
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as beside:
            fill(whole := Path(beside) / "whole")
            # Another process may have been faster; its folder is as good.
            with suppress(OSError):
                whole.replace(target)
    return target
