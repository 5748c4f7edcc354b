"""An end to waiting: a process that hangs in native code ends itself."""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End this process if the body of the `with` takes longer than it may; 0: it may take for ever.

    For Python workers, whose task Spark then starts again in another process. The timer is a
    thread of C code, so that it also ends a body that never gives the interpreter back (a driver
    call, a deadlocked lock). The places in the code where all threads were, without any value,
    go to stderr.
    """
    if not seconds:
        yield
        return
    _start_timer(seconds)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class Progress:
    """The same for a process whose threads wait for one device in turns.

    It ends when bodies are running and none of them has begun or ended for too long: each of them
    may have to wait for all the others.
    """

    def __init__(self, seconds: float) -> None:
        """Take the longest time without a beginning or an end [s]; 0: it may be for ever."""
        self._seconds = seconds
        self._running = 0
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Watch over the body of the `with`."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._running += change
            if not self._seconds:
                return
            if self._running:
                _start_timer(self._seconds)
            else:
                faulthandler.cancel_dump_traceback_later()


def _start_timer(seconds: float) -> None:
    """Start the process's only timer, or start it anew."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
