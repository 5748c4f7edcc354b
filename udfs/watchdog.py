"""An end to waiting: a process that hangs in native code ends itself."""

from __future__ import annotations

import faulthandler
import sys
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
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
