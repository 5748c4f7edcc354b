"""Run one way once: `python -m tests.benchmark.run TASK.json OUTCOME.json`."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

from tests.benchmark.task import Outcome, Task

# Where each way is. A module is imported for its own ways only, as start-up is measured.
_MODULES: Final = {"engine": "engine", "job": "spark", "predict_batch_udf": "spark"}


def main(task_file: str, outcome_file: str) -> None:
    """Run the task's way and write what it measured."""
    task = Task(**json.loads(Path(task_file).read_text(encoding="utf-8")))
    module = importlib.import_module(f"tests.benchmark.{_MODULES.get(task.way, 'peers')}")
    outcome: Outcome = getattr(module, task.way)(task)
    Path(outcome_file).write_text(json.dumps(asdict(outcome)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
