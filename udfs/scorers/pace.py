"""When the next request may start: by the clock, by the server's wish, by the money left."""

import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final

# Where services say how many requests they still take, and when they take more: in seconds from now
# or since 1970, or as a date.
_REMAINING: Final = ("x-ratelimit-remaining", "x-ratelimit-remaining-requests")
_WAITS: Final = ("retry-after", "x-ratelimit-reset", "x-ratelimit-reset-requests")
_EPOCH: Final = 1e9  # what is beyond it are seconds since 1970
_CREDIT: Final = 2.0  # s without requests, as between two tasks, that are made up for
LONGEST_WAIT: Final = 60.0  # s, whatever a server says
_ROUNDING: Final = 1e-6  # units


class Pace:
    """When requests may start: evenly spaced, and none before the server wants it."""

    def __init__(self, per_minute: float) -> None:
        """Start at once; 0: no limit."""
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._next = self._resume = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Wait for a turn, or for `stop`."""
        with self._lock:
            now = time.monotonic()
            at = max(now - _CREDIT, self._next) if self._next else now
            self._next = at + self._interval
        while (left := max(at, self._resume) - time.monotonic()) > 0 and not stop.wait(left):
            pass

    def pause(self, seconds: float) -> None:
        """Let no request start for a while."""
        with self._lock:
            self._resume = max(self._resume, time.monotonic() + seconds)

    def heed(self, headers: Mapping[str, str]) -> None:
        """Pause if a good answer says that the server takes no more requests for now."""
        if any(headers.get(name) == "0" for name in _REMAINING):
            self.pause(wanted_wait(headers) or 0.0)


class Allowance:
    """Billed units that this process may use; a request waits until those in flight are paid.

    A request is taken to cost as much for its size as the dearest one so far.
    """

    def __init__(self, price: float | None) -> None:
        """Allow nothing yet. `price`: units for a size of 1; None: the first request tells it."""
        self._price, self._left, self._in_flight = price, 0.0, 0.0
        self._changed = threading.Condition()

    def grant(self, units: float) -> None:
        """Allow more units."""
        with self._changed:
            self._left += units

    def reserve(self, size: float) -> bool:
        """Return whether a request fits into what is left, as soon as that is known."""
        with self._changed:
            while True:
                price, first = self._price or 0.0, not self._in_flight
                fits = price * (self._in_flight + size) <= self._left + _ROUNDING
                if fits and self._left > 0 and (first or self._price is not None):
                    self._in_flight += size
                    return True
                if first:
                    return False
                self._changed.wait()

    def settle(self, size: float, units: float | None) -> None:
        """Pay for a request; None: what one of its size may cost, as nobody knows."""
        with self._changed:
            self._in_flight -= size
            self._left -= (self._price or 0.0) * size if units is None else units
            self._price = max(self._price or 0.0, (units or 0.0) / size) or None
            self._changed.notify_all()


def wanted_wait(headers: Mapping[str, str]) -> float | None:
    """Return how long a server wants to be left alone [s], a minute at most; None: it is silent."""
    for name in _WAITS:
        value, seconds = headers.get(name, ""), math.nan
        with suppress(ValueError):
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        with suppress(ValueError):
            seconds = float(value)
            seconds -= time.time() if seconds > _EPOCH else 0.0
        if not math.isnan(seconds):
            return min(max(seconds, 0.0), LONGEST_WAIT)
    return None
