"""The frame of every command: configuration in, exit code out, one sentence for what went wrong."""

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from py4j.protocol import Py4JError
from pyspark import SparkContext

from jobs.config import Config
from jobs.runtime import errors
from jobs.runtime.cli import help_text, load_config
from jobs.runtime.compat import accumulator_server
from jobs.runtime.errors import RefusedError
from jobs.runtime.redaction import known_secrets, masked, secrets_of
from jobs.runtime.session import full_folders

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_GRACE: Final = 20.0  # s for a run to clean up after a signal
_NO_SPACE: Final = ("No space left on device", "Disk quota exceeded", "File too large")
_JAVA_FRAMES: Final = re.compile(r"^\s+(at .*\)|\.\.\. \d+ more)\n", re.MULTILINE)
# Spark quotes a value that it cannot cast, which may be a text.
_QUOTED_VALUE: Final = re.compile(r"(?s)(?<=The value ').*?(?=' of the type)")


class _StoppedError(Exception):
    """The process got a signal, the argument; the cause is what ended the action, if it ended."""


@dataclass(frozen=True)
class Command:
    """One command line."""

    name: str  # how it is called
    about: str  # what it does, one line
    require: tuple[str, ...]  # dotted keys it cannot do without; alternatives are joined by `|`
    sections: str = ""  # fields of the configuration that `--help` shows; empty: all
    config: type[Config] = Config

    def __call__(self, action: Callable[[Config], int]) -> Callable[..., int]:
        """Make the `main` of a command out of what it does: arguments in, exit code out."""
        return lambda argv=None: self.run(argv, action)

    def run(self, argv: Sequence[str] | None, action: Callable[[Config], int]) -> int:
        """Resolve the configuration and run an action; report all errors of a refusal at once.

        `argv` are arguments without the program's name; None takes the process's own. Returns the
        action's exit code, one of `jobs.runtime.errors`, or 128 and the number of a signal.
        """
        words = sys.argv[1:] if argv is None else list(argv)
        if {"-h", "--help", "--help-all"}.intersection(words):
            every = "--help-all" in words or not self.sections
            shown = list(self.config.model_fields) if every else self.sections.split()
            sys.stdout.write(help_text(self.name, self.about, self.config, shown))
            return errors.DONE
        known, config = secrets_of(os.environ), Config()
        _quiet_py4j()
        try:
            config = load_config(words, self.require, self.config)
            known = known_secrets(config)
            return _run_stoppable(partial(action, config))
        except RefusedError as error:
            # Scores that were made before, and are kept, are a note.
            said = [f"  - {line}" for line in (*error.messages, *getattr(error, "__notes__", ()))]
            said, code = ["refused, nothing was published:", *said], errors.REFUSED
        except _StoppedError as error:
            number = signal.Signals(error.args[0])
            said, code = [_to_go_on(f"stopped by {number.name}", error.__cause__)], 128 + number
        except Exception as error:
            said, code = [_explain(error, config)], errors.UNEXPECTED
        sys.stderr.writelines(f"{masked(line, known)}\n" for line in said)
        return code


def _quiet_py4j() -> None:
    """Keep py4j from printing the stacks of a JVM that is gone, which `_explain` names."""
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(lambda record: "py4j" not in record.pathname)
    accumulator_server().handle_error = lambda *_: None


def _run_stoppable(action: Callable[[], int]) -> int:
    """Run an action in a thread: a signal then finds the main thread free to cancel Spark's jobs.

    A call of the JVM that a signal breaks off leaves its answer in the socket for the next call.
    """
    if threading.current_thread() is not threading.main_thread():
        return action()
    outcome: Future[int] = Future()
    received: list[int] = []

    def work() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:
            outcome.set_exception(error)

    former = {n: signal.signal(n, lambda number, _: received.append(number)) for n in _SIGNALS}
    try:
        threading.Thread(target=work, daemon=True).start()
        while not outcome.done() and not received:
            wait([outcome], 0.2)
        if received:
            _cancel_jobs(outcome)
            error = outcome.exception() if outcome.done() else None
            if error is not None or not outcome.done():
                raise _StoppedError(received[0]) from error
        return outcome.result()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _cancel_jobs(outcome: Future[int]) -> None:
    """Cancel Spark's jobs, again and again, until the action has ended; stop other processes."""
    deadline = time.monotonic() + _GRACE
    for process in multiprocessing.active_children():
        process.terminate()
    while not outcome.done() and time.monotonic() < deadline:
        context: Any = SparkContext._active_spark_context
        with suppress(Py4JError, OSError):
            if context is not None:
                context.setLogLevel("OFF")  # the stacks of cancelled tasks
                context.cancelAllJobs()
        wait([outcome], 0.5)


def _explain(error: Exception, config: Config) -> str:
    """Return one sentence where the cause is known, else the traceback without Java's frames."""
    if isinstance(error, errors.LockedError | errors.BookkeepingError):
        return str(error)
    if isinstance(error, errors.InterruptedRunError):
        return _to_go_on(str(error), error)
    said = "".join(traceback.format_exception(error))
    if sentence := _no_space(said, config) or _no_jvm():
        return _to_go_on(sentence, error)
    return _QUOTED_VALUE.sub("***", _JAVA_FRAMES.sub("", said)).rstrip()


def _no_space(said: str, config: Config) -> str | None:
    """Name the places that are full, if a full disk is the cause."""
    places = [path for path in (config.output.path, config.store.path) if path]
    full = full_folders(config.spark.settings, *places)
    # A native library that cannot be unpacked blames itself.
    cause = next((mark for mark in _NO_SPACE if mark in said), _NO_SPACE[0] if full else None)
    return cause and f"{cause}: free some in {' or '.join(full or places)}"


def _no_jvm() -> str | None:
    """Say so if Spark's JVM is gone, or never started."""
    process = getattr(SparkContext._gateway, "proc", None)
    with suppress(subprocess.TimeoutExpired):
        if process is not None:
            code = process.wait(1.0)
            return f"Spark's JVM has ended (code {code}): it was killed, or had too little memory"
    return None


def _to_go_on(sentence: str, error: BaseException | None) -> str:
    notes = getattr(error, "__notes__", [])
    return "; ".join([sentence, *notes, "run the same command again to go on"])
