"""A file that shows other runs, on any file system, that this run is alive."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Final

from py4j.protocol import Py4JError

from jobs.output.filesystem import Files

_NAME: Final = "heartbeat"
_INTERVAL: Final = 15.0  # s
_STALE: Final = 600.0  # s without a beat; a suspended machine may come back before


class Heartbeat:
    """A file in a folder that is written again and again while this run lives.

    Ages are differences of times that the file system has set, so the clocks of two drivers need
    not agree.
    """

    def __init__(self, files: Files, folder: str) -> None:
        """Write nothing yet."""
        self._files = files
        self._file = f"{folder}/{_NAME}"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Write the file at once, and from now on."""
        self._files.write_text(self._file, "")
        self._thread.start()

    def stop(self) -> None:
        """Write no more; the file stays."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def is_stale(self, folder: str) -> bool:
        """Return whether the run of another folder gave no sign of life for long."""
        # A folder without the file is of a run that is just beginning, or one that died there.
        theirs = self._files.modified(f"{folder}/{_NAME}") or self._files.modified(folder)
        ours = self._files.modified(self._file)
        return theirs is not None and ours is not None and ours - theirs > _STALE

    def _beat(self) -> None:
        while not self._stopped.wait(_INTERVAL):
            with suppress(Py4JError, OSError):  # a full disk may have room at the next beat
                self._files.write_text(self._file, "")
