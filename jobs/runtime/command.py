"""The frame of every command: configuration in, exit code out, and no secret in what it says."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from jobs.config import Config
from jobs.runtime.cli import help_text, load_config
from jobs.runtime.errors import DONE, REFUSED, RefusedError
from jobs.runtime.redaction import known_secrets, masked, secrets_of


@dataclass(frozen=True)
class Command:
    """One command line.

    Attributes:
        name: how it is called, for `--help`.
        about: what it does, one line, for `--help`.
        require: dotted keys it cannot do without; alternatives are joined by `|`.
        sections: fields of the configuration that it reads, for `--help`; empty: all.
        config: sections and keys.
    """

    name: str
    about: str
    require: tuple[str, ...]
    sections: str = ""
    config: type[Config] = Config

    def run(self, argv: Sequence[str] | None, story: Callable[[Config], int]) -> int:
        """Resolve the configuration and tell the story; what it refuses is printed, all at once.

        Args:
            argv: arguments without the program's name; None takes the process's own.
            story: what the command does; it returns the exit code.

        Returns:
            One of the exit codes of `jobs.runtime.errors`.
        """
        words = sys.argv[1:] if argv is None else list(argv)
        if {"-h", "--help", "--help-all"}.intersection(words):
            every = "--help-all" in words or not self.sections
            shown = list(self.config.model_fields) if every else self.sections.split()
            sys.stdout.write(help_text(self.name, self.about, self.config, shown))
            return DONE
        known = secrets_of(os.environ)
        try:
            config = load_config(words, self.require, self.config)
            known = known_secrets(config)
            _mask_tracebacks(known)
            return story(config)
        except RefusedError as error:
            sys.stderr.write("refused, nothing was written:\n")
            sys.stderr.writelines(f"  - {masked(finding, known)}\n" for finding in error.messages)
            return REFUSED


def _mask_tracebacks(known: tuple[str, ...]) -> None:
    """An unexpected error may quote an address with its password."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace)), known))

    sys.excepthook = show
