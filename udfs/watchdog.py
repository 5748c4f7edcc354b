"""A time limit for calls that hang in native code: the process ends itself."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End this process if the body of the `with` takes longer than this [s]; 0: no limit.

    For Python workers, whose task Spark starts again in another process. The timer is a thread of
    C code, so it also ends a body that never gives the interpreter back (a driver call, a
    deadlocked lock). A stack of each thread, without any value, goes to stderr.
    """
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
