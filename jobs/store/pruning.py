"""What a store need not keep: fingerprints out of use, and what dead attempts left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.output.filesystem import Files
from jobs.store.inventory import Fingerprint, newest


@dataclass(frozen=True)
class Waste:
    """A folder to be dropped, why, and the bytes in it."""

    path: str
    reason: str
    size: int


def find_waste(
    inventory: list[Fingerprint], now: float, *, older_than: float, settled: float
) -> Iterator[Waste]:
    """What may go.

    Args:
        inventory: all fingerprints of a store.
        now: [s since 1970].
        older_than: a fingerprint not used for so long goes as a whole [s].
        settled: of the others, attempts and unfinished files that nothing was written to for so
            long belong to a run that has died [s].
    """
    for fingerprint in inventory:
        if now - fingerprint.used > older_than:
            days = (now - fingerprint.used) / 86400
            yield Waste(fingerprint.path, f"not used for {days:.0f} days", fingerprint.size)
            continue
        for attempt in fingerprint.attempts:
            if not attempt.files and now - newest(attempt.entries) > settled:
                size = sum(entry.size for entry in attempt.entries)
                yield Waste(attempt.path, "no task of it has ended", size)
            elif attempt.unfinished and now - newest(attempt.unfinished) > settled:
                size = sum(entry.size for entry in attempt.unfinished)
                yield Waste(attempt.unfinished[0].path, "tasks that never ended", size)


def drop(files: Files, waste: Waste) -> None:
    """Delete a folder. Whatever is left of it after a crash is a valid state."""
    files.delete(waste.path)
