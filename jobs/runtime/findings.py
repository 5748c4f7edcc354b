"""What several checks refuse, gathered into one list."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from jobs.runtime.errors import RefusedError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Findings:
    """What several checks refuse, gathered."""

    def __init__(self) -> None:
        """Nothing is wrong yet."""
        self._found: list[str] = []

    def of(self, check: Callable[_P, _T], *args: _P.args, **keys: _P.kwargs) -> _T | None:
        """What a check returns; None if it refuses, with its findings kept."""
        try:
            return check(*args, **keys)
        except RefusedError as error:
            self._found += [said for said in error.findings if said not in self._found]
            return None

    def __bool__(self) -> bool:
        """Whether anything is wrong."""
        return bool(self._found)

    def add(self, finding: str) -> None:
        """Keep a sentence: the value, what is wrong with it, and the remedy."""
        self._found.append(finding)

    def refuse(self) -> None:
        """Refuse if anything was found.

        Raises:
            RefusedError: with all of it.
        """
        if self._found:
            self.stop()

    def stop(self) -> NoReturn:
        """Refuse with what was found."""
        raise RefusedError(self._found)
