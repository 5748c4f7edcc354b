"""Peak memory of a process and all it started."""

from __future__ import annotations

import threading
import time
from typing import Final

import psutil

_PERIOD: Final = 0.5  # s
# Looking at gigabytes takes time, of cores that are being measured: one part in so many of one.
_SHARE: Final = 50


class MemoryWatch(threading.Thread):
    """Measure every half second, or less often, what a process tree holds while the block runs.

    Pages that processes share are counted once (proportional set size).

    Attributes:
        peak: the largest sum seen [MB, 10^6 bytes]; None where the system does not tell.
    """

    def __init__(self, pid: int) -> None:
        """Watch `pid` and its descendants."""
        super().__init__(daemon=True)
        self.peak: float | None = None
        self._process = psutil.Process(pid)
        self._ended = threading.Event()

    def __enter__(self) -> MemoryWatch:
        """Start watching."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Look until the block ends."""
        took = 0.0
        while not self._ended.wait(max(_PERIOD, _SHARE * took)):
            start = time.perf_counter()
            try:
                processes = [self._process, *self._process.children(recursive=True)]
                held = sum(getattr(each.memory_full_info(), "pss", 0) for each in processes)
            except psutil.Error:  # one of them has ended; the next look counts again
                continue
            took = time.perf_counter() - start
            if held:
                self.peak = max(self.peak or 0.0, held / 1e6)
