"""What a store holds, from names, sizes and times alone; no score is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from jobs.output.filesystem import Entry, Files
from jobs.store.scores import ABOUT, ATTEMPT, FINGERPRINT

_SECONDS: Final = {"m": 60.0, "h": 3600.0, "d": 86400.0}
_TEMPORARY: Final = "_temporary"  # where Spark's tasks write until they end


@dataclass(frozen=True)
class Attempt:
    """What one run, or one merge, wrote."""

    path: str
    entries: tuple[Entry, ...]

    @cached_property
    def files(self) -> tuple[Entry, ...]:
        """Finished files."""
        hidden = (f"{self.path}/{_TEMPORARY}/", f"{self.path}/.")
        return tuple(
            entry
            for entry in self.entries
            if entry.name.endswith(".parquet") and not entry.path.startswith(hidden)
        )

    @cached_property
    def unfinished(self) -> tuple[Entry, ...]:
        """What tasks that have not ended, or never will, have written."""
        return tuple(e for e in self.entries if e.path.startswith(f"{self.path}/{_TEMPORARY}"))

    @property
    def size(self) -> int:
        """Of the finished files [bytes]."""
        return sum(entry.size for entry in self.files)


@dataclass(frozen=True)
class Fingerprint:
    """All scores of one fingerprint.

    Attributes:
        name: the fingerprint.
        path: its folder.
        about: what the scores are of; empty if the folder does not say.
        attempts: who wrote them.
        used: when anything in the folder last changed, opening it included [s since 1970].
    """

    name: str
    path: str
    about: dict[str, Any]
    attempts: tuple[Attempt, ...]
    used: float

    @property
    def files(self) -> tuple[Entry, ...]:
        """Finished files of all attempts."""
        return tuple(entry for attempt in self.attempts for entry in attempt.files)

    @property
    def size(self) -> int:
        """Of the finished files [bytes]."""
        return sum(attempt.size for attempt in self.attempts)


def take_inventory(files: Files, store: str) -> list[Fingerprint]:
    """Every fingerprint of a store, in the order of their names."""
    return [
        _fingerprint(files, entry)
        for entry in files.entries(store)
        if entry.is_folder and entry.name.startswith(FINGERPRINT)
    ]


def newest(entries: tuple[Entry, ...]) -> float:
    """When the latest of them changed [s since 1970]."""
    return max((entry.modified for entry in entries), default=0.0)


def seconds(age: str) -> float:
    """`30d`, `6h` or `5m` as seconds."""
    return int(age[:-1]) * _SECONDS[age[-1]]


def _fingerprint(files: Files, folder: Entry) -> Fingerprint:
    inside = files.entries(folder.path)
    attempts = tuple(
        Attempt(entry.path, (entry, *files.tree(entry.path)))
        for entry in inside
        if entry.is_folder and entry.name.startswith(ATTEMPT)
    )
    everything = (folder, *inside, *(entry for attempt in attempts for entry in attempt.entries))
    return Fingerprint(
        name=folder.name.removeprefix(FINGERPRINT),
        path=folder.path,
        about=_about(files, folder.path),
        attempts=attempts,
        used=newest(everything),
    )


def _about(files: Files, folder: str) -> dict[str, Any]:
    try:
        found = json.loads(files.read_text(f"{folder}/{ABOUT}"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
