"""Run a command with a driver that dies at a chosen point, by signal 9 and with its JVM.

python -m tests.faults.launch '{"die": "published"}' jobs.rerank ARGUMENTS...

No failpoint is known to `jobs`: real functions are wrapped here, and do what they do.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyspark import SparkContext


@dataclass(frozen=True)
class Driver:
    """What is to happen to the driver.

    Attributes:
        die: where. `stored` and `ranked`: when that step has ended; `moved:N`: when N results
            of the swap are in their places; `published`: when all are. `tasks:K`: when K scoring
            tasks have ended; `seconds:S`: so long after the session was there.
        scores: folder of the score store, for `tasks:K`.
        flip: file in which a bit is flipped as soon as the session is there.
        meet: folder in which two drivers wait for each other before they publish.
        patch: values of constants, by `module.NAME`.
    """

    die: str = ""
    scores: str = ""
    flip: str = ""
    meet: str = ""
    patch: dict[str, Any] = field(default_factory=dict)


def die() -> None:
    """What a machine that is taken away does: driver and JVM end together, and nothing is said."""
    gateway: Any = SparkContext._gateway
    os.kill(gateway.proc.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: Any, name: str, then: Callable[[], None]) -> None:
    """Have a function of a module or class do something more when it has ended."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **keys: Any) -> Any:
        result = original(*args, **keys)
        then()
        return result

    setattr(owner, name, wrapped)


def arrange(driver: Driver) -> None:
    """Put the chosen points into place."""
    from jobs import preflight, rerank
    from jobs.output.folder import OutputFolder
    from jobs.store.scores import ScoreStore

    point, _, number = driver.die.partition(":")
    if point == "stored":
        after(ScoreStore, "append", die)
    elif point == "ranked":
        after(rerank, "write_ranked", die)
    elif point == "moved":
        after(OutputFolder, "_move_in", _on_call(int(number)))
    elif point == "published":
        after(OutputFolder, "publish", die)
    elif point == "tasks":
        in_background(lambda: _when_written(Path(driver.scores), int(number)))
    elif point == "seconds":
        after(preflight, "open_session", lambda: in_background(lambda: _later(float(number))))
    elif point:
        raise ValueError(point)
    if driver.flip:
        after(preflight, "open_session", lambda: _flip(Path(driver.flip)))
    if driver.meet:
        publish = OutputFolder.publish

        def together(*args: Any, **keys: Any) -> None:
            _meet(Path(driver.meet))
            publish(*args, **keys)

        OutputFolder.publish = together  # type: ignore[method-assign]


def in_background(task: Callable[[], None]) -> None:
    threading.Thread(target=task, daemon=True).start()


def _on_call(number: int) -> Callable[[], None]:
    calls = iter(range(1, number + 1))

    def count() -> None:
        if next(calls, None) == number:
            die()

    return count


def _when_written(scores: Path, files: int) -> None:
    while len(list(scores.glob("fingerprint=*/attempt=*/*.parquet"))) < files:
        time.sleep(0.02)
    die()


def _later(seconds: float) -> None:
    time.sleep(seconds)
    die()


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _meet(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.001)


def main(argv: list[str]) -> int:
    driver = Driver(**json.loads(argv[0]))
    for name, value in driver.patch.items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    command = importlib.import_module(argv[1])
    arrange(driver)
    code: int = command.main(argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
