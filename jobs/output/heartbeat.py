"""A run's sign of life, for other runs to see on any file system."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Final

from py4j.protocol import Py4JJavaError

from jobs.output.filesystem import Files

_NAME: Final = "pulse"
_BEAT: Final = 15.0  # s
_DEAD: Final = 120.0  # s without a beat


class Pulse:
    """A file in a folder that is written again and again while this run lives.

    Ages are differences between times that the file system itself has set, so that the clocks of
    two drivers need not agree.
    """

    def __init__(self, files: Files, folder: str) -> None:
        """Nothing is written yet."""
        self._files = files
        self._file = f"{folder}/{_NAME}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        """Beat at once, and from now on."""
        self._files.write_text(self._file, "")
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; the file stays."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def outlived(self, folder: str) -> bool:
        """Whether the run of another folder was last heard of long before this one's last beat."""
        # A folder without a pulse is of a run that is just beginning, or one that never got on.
        theirs = self._files.modified(f"{folder}/{_NAME}") or self._files.modified(folder)
        ours = self._files.modified(self._file)
        return theirs is not None and ours is not None and ours - theirs > _DEAD

    def _beat(self) -> None:
        while not self._over.wait(_BEAT):
            with suppress(Py4JJavaError):  # a disk that is full now may have room at the next beat
                self._files.write_text(self._file, "")
