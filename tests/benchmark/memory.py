"""Peak memory of a process and all it started."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final

import psutil

_PERIOD: Final = 0.5  # s
# Looking at gigabytes takes time, of cores that are being measured: one part in so many of one.
_SHARE: Final = 50


class MemoryWatch:
    """Measure every half second what a process tree holds, while the `with` block runs.

    Pages that processes share are counted once (proportional set size).

    Attributes:
        peak: the largest sum seen [MB, 10^6 bytes]; None where the system does not tell.
    """

    def __init__(self, pid: int) -> None:
        """Watch `pid` and its descendants."""
        self.peak: float | None = None
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        """Start watching."""
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop watching."""
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        took = 0.0
        while not self._ended.wait(max(_PERIOD, _SHARE * took)):
            start = time.perf_counter()
            held = self._held()
            took = time.perf_counter() - start
            if held:
                self.peak = max(self.peak or 0.0, held / 1e6)

    def _held(self) -> int:
        held = 0
        try:
            for process in (self._process, *self._process.children(recursive=True)):
                held += getattr(process.memory_full_info(), "pss", 0)
        except psutil.Error:  # one of them has ended; the next look counts again
            return 0
        return held
