"""The frame of every command: configuration in, exit code out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.cli import load_config
from jobs.config import Config
from jobs.errors import REFUSED, RefusedError


@dataclass(frozen=True)
class Command:
    """One command line.

    Attributes:
        name: how it is called, for `--help`.
        about: what it does, one line, for `--help`.
        require: dotted keys it cannot do without; alternatives are joined by `|`.
    """

    name: str
    about: str
    require: tuple[str, ...]

    def run(self, argv: Sequence[str] | None, story: Callable[[Config], int]) -> int:
        """Resolve the configuration and tell the story; what it refuses is printed, all at once.

        Args:
            argv: arguments without the program's name; None takes the process's own.
            story: what the command does; it returns the exit code.

        Returns:
            One of the exit codes of `jobs.errors`.
        """
        try:
            return story(
                load_config(
                    sys.argv[1:] if argv is None else argv,
                    require=self.require,
                    command=self.name,
                    description=self.about,
                )
            )
        except RefusedError as error:
            sys.stderr.write("refused, nothing was written:\n")
            sys.stderr.writelines(f"  - {finding}\n" for finding in error.findings)
            return REFUSED
