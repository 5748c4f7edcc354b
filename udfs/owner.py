"""The process that has a GPU's model: workers hand it batches and get logits back.

    python -m udfs.owner SOCKET GIVEN        (started by a worker, see `udfs.lease`)

Spark's Python workers are processes. Were each to load the model, a GPU that four task slots feed
would hold it four times, with four CUDA contexts of half a gigabyte; and CUDA lets processes take
turns, so that none of it would make it faster. Here the model is loaded once per GPU. While one
worker's batch is computed, the others read, tokenise and plan, and what they send is started before
the device has ended what came before.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, Final

from udfs import devices
from udfs.encoding.pairs import Batch
from udfs.forward.transformers import TorchModel
from udfs.memory import Peak, peak, unless_full
from udfs.scores import Forwarded
from udfs.spec import Precision, ScorerSpec
from udfs.watchdog import Progress

#: What the process prints when it can be reached.
READY: Final = "ready"
#: First part of an answer: the second is the result, or why there is none.
DONE, FAILED = "done", "failed"
# Longer than a worker takes between two batches, or Spark between two stages. The weights stay on
# the GPU for that long after the last job of a session.
_PATIENCE: Final = 120.0  # s
_BACKLOG: Final = 128  # workers that may knock at once


class Owner:
    """A model on a device, for threads that each speak for one worker.

    Args:
        path: the model's folder.
        spec: the scorer.
        slot: cores and GPU of the task that came first.
    """

    def __init__(self, path: Path, spec: ScorerSpec, slot: devices.TaskSlot) -> None:
        """Load nothing yet."""
        self._path, self._spec, self._slot = path, spec, slot
        self._models: dict[Precision, TorchModel] = {}
        self._loading, self._starting = threading.Lock(), threading.Lock()
        self._progress = Progress(spec.batch_timeout)
        self._counting = threading.Lock()
        self._requests = 0
        self._last = time.monotonic()
        self._retired = False

    def load(self, precision: Precision) -> bool:
        """Load the model in this precision if it is not there; False where memory ran out.

        Raises:
            ModelError, DeviceError: naming what is wrong and the remedy.
        """
        with self._loading:
            if precision not in self._models:
                devices.prepare_process(self._slot)
                device = devices.choose(self._spec.device, self._slot)
                model = unless_full(
                    lambda: TorchModel.load(self._path, self._spec, device, precision)
                )
                if model is None:
                    return False
                self._models[precision] = model
            return True

    def forward(self, precision: Precision, batch: Batch) -> Forwarded | None:
        """One batch, loading the model if it is not there; None where memory ran out.

        Batches are started one after the other and waited for side by side.
        """
        if not self.load(precision):
            return None
        model = self._models[precision]
        with self._progress.one():
            try:
                with self._starting:
                    wait = unless_full(lambda: model.start(batch))
                return None if wait is None else unless_full(wait)
            except Exception:
                # A GPU that has failed once fails whatever this process asks of it from then on.
                self._retired = True
                raise

    def peak(self) -> Peak:
        """What this process has held."""
        return peak()

    def retire(self, idle: float) -> bool:
        """End this process if it has had nothing to do for so long [s], to make room for another.

        Returns:
            Whether it ends; the line then closes when it has.
        """
        if self.idle(idle):
            self._retired = True
        return self._retired

    def idle(self, seconds: float) -> bool:
        """Whether nothing is being done, nor has been for so long [s] or ever will be again."""
        with self._counting:
            quiet = time.monotonic() - self._last >= seconds
            return not self._requests and (self._retired or quiet)

    def answer(self, what: str, *given: Any) -> tuple[str, Any]:
        """Do what a worker asks for; an error is an answer, too."""
        requests: dict[str, Callable[..., Any]] = {
            "load": self.load, "forward": self.forward, "peak": self.peak, "retire": self.retire,
        }  # fmt: skip
        try:
            return DONE, requests[what](*given)
        except Exception as error:
            return FAILED, f"{type(error).__name__}: {error}"

    def serve(self, line: Connection) -> None:
        """Answer one worker until it hangs up.

        Behind an error of the device, other than a lack of memory, workers that have asked already
        are answered; the next to ask find that this process ends, and start another.
        """
        with line, suppress(EOFError, ConnectionError):
            while True:
                what, *given = line.recv()
                if self._retired:
                    threading.Event().wait()  # the line closes with the process, not before
                if what == "retire":  # which is no work
                    line.send(self.answer(what, *given))
                    continue
                with self._at_work():
                    line.send(self.answer(what, *given))

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """A request, from its arrival until its answer has been sent."""
        with self._counting:
            self._requests += 1
        try:
            yield
        finally:
            with self._counting:
                self._requests -= 1
                self._last = time.monotonic()


def describe(path: Path, spec: ScorerSpec, slot: devices.TaskSlot) -> str:
    """An owner's parts, for the command line."""
    return json.dumps({"path": str(path), "spec": asdict(spec), "slot": asdict(slot)})


def main(argv: Sequence[str]) -> int:
    """Own a model until nobody has asked for anything for two minutes, or the executor ends."""
    socket, given = Path(argv[0]), json.loads(argv[1])
    for end in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(end, lambda *_: sys.exit())
    owner = Owner(
        Path(given["path"]), ScorerSpec(**given["spec"]), devices.TaskSlot(**given["slot"])
    )
    with _left_clean(socket.parent), Listener(str(socket), "AF_UNIX", _BACKLOG) as listener:
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        # Whatever libraries print from now on goes to the log.
        os.dup2(2, 1)
        door = threading.Thread(target=_welcome, args=(listener, owner), daemon=True)
        door.start()
        while door.is_alive() and not owner.idle(_PATIENCE):
            time.sleep(0.2)
    return 0


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Have a folder alone; the lock goes with its holder.

    Raises:
        BlockingIOError: if somebody has it, and `wait` is false.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _left_clean(folder: Path) -> Iterator[None]:
    """Take the folder away if nothing is left in it, and nobody is about to put something there."""
    try:
        yield
    finally:
        with suppress(OSError), locked(folder.parent, wait=False):
            folder.rmdir()


def _welcome(listener: Listener, owner: Owner) -> None:
    """A thread for every worker that comes."""
    while True:
        try:
            line = listener.accept()
        except ConnectionError:
            continue  # it hung up while it was let in
        except OSError:
            return  # the door is closed
        threading.Thread(target=owner.serve, args=(line,), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
