"""The process that Spark forks workers from, with faults built in. No fault is known to `udfs`.

    spark.python.daemon.module=tests.faults.daemon    spark.executorEnv.FAULTS={"kill": "worker"}

The scorer is wrapped before any worker is forked.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_VARIABLE = "FAULTS"
_EXECUTOR = os.getppid()  # of the daemon: the JVM that starts it


@dataclass(frozen=True)
class Faults:
    """What is to go wrong in the workers.

    Attributes:
        tally: file that every worker adds `PID PAIRS` to, for each batch given to the model.
        fired: file that says the fault has fired; it fires once, where it stands for one event.
        kill: `worker` or `executor`, killed with signal 9 in batch `at` of some worker.
        hang: whether batch `at` of some worker never ends.
        at: batch of a worker, from 1.
        pace: time added to every batch [s].
        share: share of task attempts that fail, one half by an error and the other by signal 9.
        seed: decides which.
        too_large: pairs for which there is never enough memory: those whose tokens have a
            checksum that this number divides; 0: none.
        torch: whether workers are forked with torch in memory, which saves time.
        offline: whether connecting to anything but this machine raises.
    """

    tally: str = ""
    fired: str = ""
    kill: str = ""
    hang: bool = False
    at: int = 3
    pace: float = 0.0
    share: float = 0.0
    seed: str = ""
    too_large: int = 0
    torch: bool = False
    offline: bool = False

    def settings(self) -> dict[str, str]:
        """Spark settings that bring these faults to every worker."""
        return {
            "spark.python.daemon.module": "tests.faults.daemon",
            f"spark.executorEnv.{_VARIABLE}": json.dumps(asdict(self)),
        }


class _Batches:
    """What happens to the batches of this process."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._count = 0
        self._doomed: dict[int, bool] = {}

    def begin(self, pairs: int) -> None:
        self._count += 1
        if self._faults.tally:
            _append(self._faults.tally, f"{os.getpid()} {pairs}\n")
        if self._faults.pace:
            time.sleep(self._faults.pace)
        if self._count >= self._faults.at and self._faults.kill and self._first():
            os.kill(self._victim(), signal.SIGKILL)
        if self._faults.share:
            self._fail_by_lot()

    def hangs(self) -> bool:
        """Whether the model is to hang in the batch that has begun."""
        return self._faults.hang and self._count >= self._faults.at and self._first()

    def _victim(self) -> int:
        return _EXECUTOR if self._faults.kill == "executor" else os.getpid()

    def _first(self) -> bool:
        """Whether no other worker's fault has fired."""
        try:
            os.close(os.open(self._faults.fired, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _fail_by_lot(self) -> None:
        from pyspark import TaskContext

        task = TaskContext.get()
        assert task is not None
        attempt = task.taskAttemptId()
        if attempt not in self._doomed:
            lot = random.Random(f"{self._faults.seed}-{attempt}")
            self._doomed[attempt] = lot.random() < self._faults.share
            if self._doomed[attempt]:
                _append(self._faults.fired, f"{attempt}\n")
                if lot.random() < 0.5:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("this task attempt was drawn to fail")


def _append(path: str, line: str) -> None:
    """Add a line in one write, which concurrent workers do not tear."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, line.encode())
    os.close(file)


def _wrap_scorers(faults: Faults) -> None:
    from udfs.scorers.base import StubScorer
    from udfs.scorers.cross_encoder import Scorer

    batches = _Batches(faults)
    forward, score = Scorer._forward, StubScorer.score_encoded

    def wrapped_forward(self: Scorer, model: Any, batch: Any) -> Any:
        rows = range(len(batch.lengths))
        batches.begin(len(rows))
        if batches.hangs():
            model = _Hung()
        elif any(_never_fits(batch.take([row]), faults.too_large) for row in rows):
            model = _WithoutMemory(faults.fired)
        return forward(self, model, batch)

    def wrapped_score(self: StubScorer, pairs: Sequence[tuple[str, str]]) -> Any:
        batches.begin(len(pairs))
        return score(self, pairs)

    Scorer._forward = wrapped_forward  # type: ignore[method-assign]
    StubScorer.score_encoded = wrapped_score  # type: ignore[method-assign]


class _Hung:
    """A model that hangs in C, and never gives the interpreter back."""

    def forward(self, batch: Any) -> Any:
        ctypes.PyDLL(None).sleep(3600)


class _WithoutMemory:
    """A model that asks for more memory than any machine has, and gets the true error."""

    def __init__(self, fired: str) -> None:
        self._fired = fired

    def forward(self, batch: Any) -> Any:
        import torch

        _append(self._fired, f"{len(batch.lengths)}\n")
        return torch.empty(1 << 48)


def _never_fits(pair: Any, divisor: int) -> bool:
    return bool(divisor) and zlib.crc32(str(pair.ids.tolist()).encode()) % divisor == 0


def _go_offline(tally: str) -> None:
    """Let sockets reach this machine only, as Spark needs; and prove that the rest is shut."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            _append(f"{tally}.refused", f"{address[0]}\n")
            raise OSError("workers must not use the network")
        connect(self, address)

    resolve: Callable[..., Any] = socket.getaddrinfo

    def guarded_resolve(host: Any, *rest: Any, **keys: Any) -> Any:
        if host not in ("127.0.0.1", "::1", "localhost", None, ""):
            _append(f"{tally}.refused", f"{host}\n")
            raise OSError("workers must not use the network")
        return resolve(host, *rest, **keys)

    socket.socket.connect = guarded  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = guarded_resolve


if __name__ == "__main__":
    from pyspark.daemon import manager

    given = Faults(**json.loads(os.environ[_VARIABLE]))
    if given.torch:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401
    _wrap_scorers(given)
    if given.offline:
        _go_offline(given.tally)
        Path(f"{given.tally}.guarded").touch()
    manager()
