"""The errors a user can mend, the exit code each ends with, and how several are collected."""

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

DONE = 0
UNEXPECTED = 1
REFUSED = 2
TOO_MANY_REJECTS = 3
GATE_NOT_PASSED = 4
NOT_TRACKED = 5

_P = ParamSpec("_P")
_T = TypeVar("_T")


class RefusedError(Exception):
    """Configuration or input that cannot be used. Nothing is published; scores made are kept.

    Each message has the value, the limit and the remedy; never a text of a query or document.
    """

    def __init__(self, messages: str | Sequence[str]) -> None:
        """Keep the messages as a list."""
        self.messages = [messages] if isinstance(messages, str) else list(messages)
        super().__init__("\n".join(self.messages))


class InterruptedRunError(Exception):
    """What is outside of this run's hands has ended it; the same command goes on. One sentence."""


class LockedError(Exception):
    """Another run is publishing to the same folder and does not end."""


class BookkeepingError(Exception):
    """Rows written do not add up to rows read. The output folder keeps its former content."""


class ErrorCollector:
    """Collect the errors of several checks, to report them together."""

    def __init__(self) -> None:
        """Start without errors."""
        self.messages: list[str] = []

    def run(self, check: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """Return the result of a check, or None with its errors kept."""
        try:
            return check(*args, **kwargs)
        except RefusedError as error:
            self.add(*error.messages)
            return None

    def add(self, *messages: str) -> None:
        """Keep errors, each once."""
        self.messages += [message for message in messages if message not in self.messages]

    def __bool__(self) -> bool:
        """Return whether there are errors."""
        return bool(self.messages)

    def raise_if_any(self) -> None:
        """Raise `RefusedError` with all errors, if there are any."""
        if self.messages:
            raise RefusedError(self.messages)
