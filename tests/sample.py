"""The part of the embedded sample that most tests run on: they take as long as it has pairs."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path

from jobs.demo import FOLDER

PAIRS = 245
QUERIES = 28


def _write() -> Path:
    """The queries with keyword traps, as a file of their own."""
    lines = (FOLDER / "sample.jsonl").read_text("utf-8").splitlines(keepends=True)
    traps = [line for line in lines if json.loads(line)["kind"] == "trap"]
    assert len(traps) == PAIRS
    folder = tempfile.mkdtemp(prefix="spark-rerank-sample-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = Path(folder) / "sample.jsonl"
    file.write_text("".join(traps), "utf-8")
    return file


SAMPLE = _write()
EVERYTHING = FOLDER / "sample.jsonl"
EVERY_PAIR = 645
EVERY_QUERY = 68
