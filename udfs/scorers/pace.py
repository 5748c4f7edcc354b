"""When the next request may start, and how long a server wants to be left alone."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final

# Where services say how many requests they still take, and when they take more.
_REMAINING: Final = ("x-ratelimit-remaining", "x-ratelimit-remaining-requests")
_WAITS: Final = ("retry-after", "x-ratelimit-reset", "x-ratelimit-reset-requests")
_EPOCH: Final = 1e9  # what is beyond it are seconds since 1970
_CREDIT: Final = 2.0  # s
LONGEST_WAIT: Final = 60.0  # s, whatever a server says


class Pace:
    """When requests may start: evenly spaced, and none before the server wants it.

    What the time between two tasks has cost is made up for, up to `_CREDIT`.
    """

    def __init__(self, per_minute: float) -> None:
        """Start at once; 0: no limit."""
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._next = self._resume = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Wait for a turn, or for `stop`."""
        with self._lock:
            at = max(time.monotonic() - _CREDIT, self._next, self._resume)
            self._next = at + self._interval
        while (left := max(at, self._resume) - time.monotonic()) > 0 and not stop.wait(left):
            pass

    def pause(self, seconds: float) -> None:
        """Let no request start for a while."""
        with self._lock:
            self._resume = max(self._resume, time.monotonic() + seconds)


def wanted_wait(headers: Mapping[str, str]) -> float | None:
    """Return how long a server wants to be left alone [s], at most a minute; None if it is silent.

    Retry-After is in seconds or a date; the reset of a rate limit in seconds, or since 1970.
    """
    for name in _WAITS:
        value, seconds = headers.get(name, ""), math.nan
        try:
            seconds = float(value)
            seconds -= time.time() if seconds > _EPOCH else 0.0
        except ValueError:
            with suppress(ValueError):
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
        if not math.isnan(seconds):
            return min(max(seconds, 0.0), LONGEST_WAIT)
    return None


def is_exhausted(headers: Mapping[str, str]) -> bool:
    """Return whether a server says that it takes no more requests for now."""
    return any(headers.get(name) == "0" for name in _REMAINING)
