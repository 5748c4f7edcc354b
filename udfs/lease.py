"""A worker's side of a GPU's model: find the process that has it, or start it (`udfs.owner`)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, Final

from udfs.devices import TaskSlot
from udfs.encoding.pairs import Batch
from udfs.forward.transformers import ModelError
from udfs.memory import Peak, peak
from udfs.owner import DONE, FAILED, READY, describe, locked
from udfs.scores import Forwarded
from udfs.spec import Precision, ScorerSpec

# A path of a socket has 108 bytes at most, and some clusters have long folders for what is
# temporary.
_LONGEST_FOLDER: Final = 60
# An owner of another model on the same GPU that has had nothing to do for so long makes room.
_MAKES_ROOM: Final = 5.0  # s
# Longer than Python keeps an owner from answering while it loads a model.
_ANSWERS: Final = 60.0  # s


class OwnerLostError(RuntimeError):
    """The process that has the model does not answer, or died twice over one request."""


class LeasedModel:
    """A model in another process; a `LogitModel` like one of this process."""

    def __init__(self, lease: Lease, precision: Precision) -> None:
        """Have it loaded if it is not.

        Raises:
            ModelError: naming what is wrong with the model or the device, and the remedy.
            torch.OutOfMemoryError: if the device has no room for it.
        """
        self._lease, self._precision = lease, precision
        _refuse_full(lease.ask("load", precision), "the model")

    def forward(self, batch: Batch) -> Forwarded:
        """One raw logit per row.

        Raises:
            torch.OutOfMemoryError: if the owner had no memory for it.
        """
        found = self._lease.ask("forward", self._precision, batch)
        _refuse_full(found is not None, f"a batch of {batch.input_ids.shape}")
        result: Forwarded = found
        return result

    def peak(self) -> Peak:
        """What this process and the owner have held, part by part the larger of both."""
        theirs: Peak = self._lease.ask("peak")
        return peak() | theirs


def borrow(path: Path, spec: ScorerSpec, slot: TaskSlot, precision: Precision) -> LeasedModel:
    """The model of this task's GPU, loaded there once for all workers of the executor."""
    return LeasedModel(Lease(path, spec, slot), precision)


class Lease:
    """A line to the owner of one model on one GPU."""

    def __init__(self, path: Path, spec: ScorerSpec, slot: TaskSlot) -> None:
        """Connect to nothing yet."""
        # Jobs that differ only in how they make batches share a model.
        one = replace(spec, max_tokens=spec.max_length, max_pairs=1, window=1)
        self._path, self._spec, self._slot = path, one, slot
        self._line: Connection | None = None

    def ask(self, what: str, *given: Any) -> Any:
        """Ask the owner, and once more a new one if it has ended: answers depend on nothing else.

        Raises:
            ModelError: what went wrong there.
            OwnerLostError: if the new one ended as well.
        """
        for _ in range(2):
            try:
                if self._line is None:
                    self._line = self._connect()
                return self._call(what, *given)
            except (EOFError, ConnectionError):
                self._line = None
        raise OwnerLostError(
            f"the process that has the model of GPU {self._slot.gpu or '0'} ended twice while it "
            f"was asked for {what}; its last words are in this executor's stderr. Spark starts the "
            "task again"
        )

    def _call(self, what: str, *given: Any) -> Any:
        assert self._line is not None
        self._line.send((what, *given))
        status, value = self._line.recv()
        if status == FAILED:
            raise ModelError(f"on GPU {self._slot.gpu or '0'}: {value}")
        return value

    def _connect(self) -> Connection:
        """A line to the owner; the first worker that wants one starts it."""
        gpu = _digest(self._slot.gpu or "0")
        wanted = describe(self._path, self._spec, self._slot)
        folder = _folder()
        with locked(folder.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
            socket = folder / f"{gpu}-{_digest(wanted)}"
            if line := _reach(socket):
                return line
            for other in sorted(folder.glob(f"{gpu}-*")):
                _ask_to_retire(other)
            socket.unlink(missing_ok=True)  # of an owner that was killed
            start(socket, wanted)
            if line := _reach(socket):
                return line
        raise EOFError


def _reach(socket: Path) -> Connection | None:
    """A line to an owner that answers; the socket of one that is just dying can be connected to.

    Raises:
        OwnerLostError: if it is there and does not answer. Another one beside it would find its
            GPU full.
    """
    with suppress(OSError, EOFError):
        line = Client(str(socket), "AF_UNIX")
        line.send(("peak",))
        if not line.poll(_ANSWERS):
            line.close()
            raise OwnerLostError(
                f"the process that has the model has not answered for {_ANSWERS:.0f} s; it ends "
                "when its batch has taken batching.timeout. Spark starts the task again"
            )
        line.recv()
        return line
    return None


def start(socket: Path, wanted: str) -> int:
    """Start an owner and wait until it can be reached. It loads nothing before it is asked to.

    It belongs to the process group of the workers, so it ends with their executor.

    Returns:
        Its process id.

    Raises:
        ModelError: if it ended at once.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "udfs.owner", str(socket), wanted],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        # Where this process has found `udfs`, a zip of `--py-files` for example.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.readline().strip()
    if said != READY:
        code = process.wait()
        raise ModelError(
            f"the process that was to have the model ended at its start with exit code {code}; "
            "its last words are in this executor's stderr"
        )
    return process.pid


def _ask_to_retire(socket: Path) -> None:
    """Have an owner that has nothing to do end, and wait for its memory."""
    with suppress(OSError, EOFError), Client(str(socket), "AF_UNIX") as line:
        line.send(("retire", _MAKES_ROOM))
        if line.poll(_ANSWERS) and line.recv() == (DONE, True):
            line.poll(_ANSWERS)  # the line closes with the process


def _folder() -> Path:
    """Where the owners of this executor are found: workers of one executor are one process group.

    Who reaches a socket may send what is unpickled, so nobody else may enter.

    Raises:
        PermissionError: if the folder is somebody else's.
    """
    temporary = Path(tempfile.gettempdir())
    if len(str(temporary)) > _LONGEST_FOLDER:
        temporary = Path("/tmp")
    mine = temporary / f"spark-rerank-{os.getuid()}"
    mine.mkdir(mode=0o700, exist_ok=True)
    found = mine.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{mine} is open to others; remove it")
    return mine / str(os.getpgrp())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _refuse_full(fits: bool, what: str) -> None:
    if not fits:
        import torch

        raise torch.OutOfMemoryError(f"the GPU has no memory for {what}")
