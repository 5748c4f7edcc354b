"""A way of `tests.benchmark.gpu` as the command sees it: processes that take orders."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.benchmark.gpu_ways import Order, Part, Setup, serve

_PATIENCE: Final = 300.0  # longest time for loading or for one run [s]


@dataclass(frozen=True)
class Run:
    """What one run of a way measured, all its processes together.

    Attributes:
        seconds: from the first process's start to the last one's end.
        logits: float32[N] in the order of the mix; None of the tokenizer.
        padding: tokens computed for nothing; None if the way does not tell.
        device_mb: most memory of tensors on the GPU [MB, 2^20 bytes]; None without one.
    """

    seconds: float
    logits: NDArray[np.float32] | None
    padding: int | None
    device_mb: float | None


class Lanes:
    """The processes of a way, from start to `stop`. An error is a string, and stays.

    Attributes:
        setup: what they were loaded with.
        error: why they are of no use; None while they are.
    """

    def __init__(self, way: str, setup: Setup, lanes: int = 1) -> None:
        """Start loading; `ready` waits for the end of it."""
        self.setup = setup
        self.error: str | None = None
        context = multiprocessing.get_context("spawn")
        # Kept here as well: a process that is still starting finds it by name.
        self._barrier = context.Barrier(lanes) if lanes > 1 else None
        self._pipes, self._processes = [], []
        for lane in range(lanes):
            ours, theirs = context.Pipe()
            arguments = (theirs, way, setup, lane, lanes, self._barrier)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            # Held by the process alone, so that its death shows as the end of the pipe.
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def ready(self) -> bool:
        """Wait until all have loaded; False, and `error`, if one of them cannot."""
        answers = [self._answer(at) for at in range(len(self._pipes))]
        self.error = next((answer for answer in answers if isinstance(answer, str)), None)
        return self.error is None

    def run(self, order: Order) -> Run | str:
        """Score pairs; a string if that fails."""
        answers = self._all(order)
        parts = [answer for answer in answers if isinstance(answer, Part)]
        if len(parts) < len(answers):
            return str(next(answer for answer in answers if isinstance(answer, str)))
        logits = None
        if all(part.logits is not None for part in parts):
            logits = np.full(order.pairs, np.nan, np.float32)
            for part in parts:
                logits[part.rows] = part.logits
        return Run(
            max(part.end for part in parts) - min(part.start for part in parts),
            logits,
            _sum(part.padding for part in parts),
            _sum(part.device_mb for part in parts),
        )

    def profile(self, order: Order) -> Any:
        """Return a profile, or why there is none."""
        found = self._all(order._replace(profile=True))[0]
        return {"error": found} if isinstance(found, str) else found

    def stop(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            with suppress(OSError):  # it has ended before
                pipe.send(None)
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def _all(self, order: Order) -> list[Any]:
        for pipe in self._pipes:
            with suppress(OSError):  # it has ended; the answer says so
                pipe.send(order)
        return [self._answer(at) for at in range(len(self._pipes))]

    def _answer(self, at: int) -> Any:
        try:
            if self._pipes[at].poll(_PATIENCE):
                return self._pipes[at].recv()
        except (EOFError, OSError):
            self._processes[at].join(5)
            self.error = f"the process ended with exit code {self._processes[at].exitcode}"
            return self.error
        self.error = f"no answer within {_PATIENCE:.0f} s"
        return self.error


def _sum(values: Any) -> Any:
    found = list(values)
    return None if None in found else sum(found)
