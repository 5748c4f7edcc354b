"""A model in a process of its own, that several workers hand their batches to.

The device is the CPU here; nothing of it knows the difference. Every owner is a real process.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Listener
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import SENTENCES
from udfs import lease, owner
from udfs.devices import TaskSlot
from udfs.encoding.pairs import Batch
from udfs.forward.transformers import ModelError
from udfs.lease import Lease, OwnerLostError, borrow
from udfs.owner import DONE, FAILED, Owner
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import ScorerSpec

SLOT = TaskSlot(cpus=1, gpu="0")
QUERIES = [SENTENCES[i % 3] for i in range(25)]
DOCS = [SENTENCES[i % 8] * (1 + i % 4) for i in range(25)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where owners are found; whoever is left at the end is ended."""
    found = tmp_path / "owners"
    found.mkdir(mode=0o700)
    monkeypatch.setattr(lease, "_folder", lambda: found)
    yield found
    for pid in owners(found):
        os.kill(pid, signal.SIGKILL)


def owners(folder: Path) -> list[int]:
    """Processes that listen in this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode().split("\0")
            dead = (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if "udfs.owner" in words and any(word.startswith(str(folder)) for word in words):
            found += [] if dead else [int(place.name)]
    return found


def given(model: Path, **changes: object) -> ScorerSpec:
    return ScorerSpec(str(model), "", **{"max_length": 64, **changes})  # type: ignore[arg-type]


def leased(spec: ScorerSpec) -> Scorer:
    return Scorer.load(Path(spec.model_path), spec, SLOT, borrow)


def test_two_workers_at_once_have_one_model_and_its_scores(folder: Path, tiny_model: Path) -> None:
    spec = given(tiny_model, max_tokens=200)
    here = Scorer.load(tiny_model, spec, SLOT).score(QUERIES, DOCS)
    found = {}

    def work(name: int) -> None:
        found[name] = leased(spec).score(QUERIES, DOCS)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(owners(folder)) == 1
    leased(replace(spec, max_tokens=64, window=7))  # other batches of the same model
    assert len(owners(folder)) == 1
    for scores in found.values():
        np.testing.assert_array_equal(scores.logit, here.logit)
        np.testing.assert_array_equal(scores.n_padded, here.n_padded)
        assert (scores.device_ms > 0).all()


def test_an_owner_that_is_killed_is_replaced_and_nobody_notices(
    folder: Path, tiny_bert: Path
) -> None:
    scorer = leased(given(tiny_bert))
    before = scorer.score(QUERIES, DOCS).logit
    (first,) = owners(folder)
    os.kill(first, signal.SIGKILL)
    np.testing.assert_array_equal(scorer.score(QUERIES, DOCS).logit, before)
    (second,) = owners(folder)
    assert second != first


def test_an_owner_that_always_dies_is_not_started_for_ever(
    folder: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Lease(tiny_bert, given(tiny_bert), SLOT)
    call = Lease._call

    def killed(self: Lease, what: str, *parts: object) -> object:
        for pid in owners(folder):
            os.kill(pid, signal.SIGKILL)
        return call(self, what, *parts)

    monkeypatch.setattr(Lease, "_call", killed)
    with pytest.raises(OwnerLostError, match="ended twice"):
        line.ask("load", "fp32")


def test_what_is_wrong_with_a_model_is_told(folder: Path, tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has the digest .* copy the folder anew"):
        leased(replace(given(tiny_bert), model_digest="of another model"))
    with pytest.raises(ModelError, match="on GPU 0: "):
        leased(given(tmp_path / "no such folder"))


def test_memory_that_ran_out_halves_the_batch(tiny_bert: Path) -> None:
    """The error is torch's own for a machine that cannot allocate; it must not hold tensors."""
    spec = given(tiny_bert, max_tokens=1000)
    host = Owner(tiny_bert, spec, SLOT)
    assert host.answer("load", "fp32") == (DONE, True)
    model, sizes = host._models["fp32"], []
    start = model.start

    def greedy(batch: Batch) -> object:
        sizes.append(batch.input_ids.size)
        return torch.empty(1 << 48) if batch.input_ids.size > 130 else start(batch)

    model.start = greedy  # type: ignore[method-assign, assignment]

    class Direct(Lease):
        def ask(self, what: str, *parts: object) -> object:
            status, value = host.answer(what, *parts)
            assert status != FAILED, value
            return value

    loan = lease.LeasedModel(Direct(tiny_bert, spec, SLOT), "fp32")
    scores = Scorer.load(tiny_bert, spec, SLOT, lambda *_: loan).score(QUERIES, DOCS)
    assert max(sizes) > 130, "the fault never fired"
    assert (scores.status == "ok").all()


def test_a_device_that_fails_is_given_up_and_what_cannot_be_loaded_is_not(tiny_bert: Path) -> None:
    """After a device-side assert every further call of the same process fails, on any batch."""
    host = Owner(tiny_bert, given(tiny_bert), SLOT)
    status, said = host.answer("load", "int4")
    assert status == FAILED and not host.idle(3600), said
    host.answer("load", "fp32")

    def broken(_: Batch) -> object:
        raise RuntimeError("CUDA error: device-side assert triggered")

    host._models["fp32"].start = broken  # type: ignore[method-assign, assignment]
    ids = np.full((1, 3), 7)
    ours, theirs = Pipe()
    threading.Thread(target=host.serve, args=(theirs,), daemon=True).start()
    ours.send(("forward", "fp32", Batch(ids, np.ones_like(ids), None)))
    status, said = ours.recv()
    assert (status, said) == (FAILED, "RuntimeError: CUDA error: device-side assert triggered")
    deadline = time.monotonic() + 20
    while not host.idle(3600) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert host.idle(3600)
    ours.send(("peak",))
    assert not ours.poll(0.5)  # the line closes with the process, and another is asked


def test_an_owner_that_hangs_is_told_and_no_other_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_ANSWERS", 0.2)
    socket = tmp_path / "hangs"
    with (
        Listener(str(socket), "AF_UNIX"),
        pytest.raises(OwnerLostError, match="has not answered for 0 s"),
    ):
        lease._reach(socket)


def test_an_idle_owner_makes_room_for_another_model_and_a_busy_one_stays(
    folder: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = leased(given(tiny_bert))
    old.score(QUERIES, DOCS)
    (first,) = owners(folder)
    leased(given(tiny_bert, max_length=32))
    assert first in owners(folder) and len(owners(folder)) == 2
    monkeypatch.setattr(lease, "_MAKES_ROOM", 0.0)
    leased(given(tiny_bert, max_length=16))
    (last,) = owners(folder)
    assert last != first
    assert len(list(folder.iterdir())) == 1
    assert old.score(QUERIES, DOCS).status.tolist() == ["ok"] * 25  # it starts one anew


def test_an_owner_ends_with_its_executor_and_leaves_nothing(folder: Path, tiny_bert: Path) -> None:
    """Spark's daemon ends its process group with SIGHUP."""
    leased(given(tiny_bert))
    (pid,) = owners(folder)
    assert os.getpgid(pid) == os.getpgrp()
    os.kill(pid, signal.SIGHUP)
    deadline = time.monotonic() + 20
    while owners(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists() or not list(folder.iterdir())


def test_an_owner_that_nobody_asks_ends(
    folder: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "_PATIENCE", 0.0)
    socket = folder / "idle"
    spec = given(tiny_bert)
    code = []
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    code.append(owner.main([str(socket), owner.describe(tiny_bert, spec, SLOT)]))
    assert code == [0]
    assert not socket.exists()


def test_a_folder_that_others_may_enter_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_LONGEST_FOLDER", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = tmp_path / f"spark-rerank-{os.getuid()}"
    mine.mkdir()
    mine.chmod(0o755)
    with pytest.raises(PermissionError, match="open to others"):
        lease._folder()
    mine.chmod(0o700)
    assert lease._folder().parent == mine
