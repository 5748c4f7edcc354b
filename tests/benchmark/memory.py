"""Peak memory of a process and all it started."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final

_PROC: Final = Path("/proc")
_PERIOD: Final = 0.5  # s
# Looking at gigabytes takes time, of cores that are being measured: one part in so many of one.
_SHARE: Final = 50


class MemoryWatch:
    """Looks about every half second at what a process tree holds, while the `with` block runs.

    Pages that processes share are counted once (proportional set size).

    Attributes:
        peak: the most that was seen [MB, 10^6 bytes]; None where there is no /proc.
    """

    def __init__(self, pid: int) -> None:
        """Watch `pid` and its descendants."""
        self.peak: float | None = None
        self._pid = pid
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        """Start looking."""
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop looking."""
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        took = 0.0
        while not self._ended.wait(max(_PERIOD, _SHARE * took)):
            start = time.perf_counter()
            held = sum(map(_proportional, tree(self._pid)))
            took = time.perf_counter() - start
            if held:
                self.peak = max(self.peak or 0.0, held / 1e6)


def tree(pid: int) -> list[int]:
    """The process and its descendants that are alive now."""
    parents: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            # The name, in parentheses, may hold blanks; the parent comes second after it.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it ended meanwhile
        parents.setdefault(parent, []).append(int(folder.name))
    found, at = [pid], 0
    while at < len(found):
        found += parents.get(found[at], [])
        at += 1
    return found


def _proportional(pid: int) -> int:
    """Proportional set size [bytes]; 0 where it cannot be read."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
