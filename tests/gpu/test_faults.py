"""What goes wrong on a GPU: no memory, a fault of the device, the wrong device."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.gpu.conftest import Model
from udfs.devices import TaskSlot, choose, find_gpu, gpus, prepare_process
from udfs.scorers.base import OK, OUT_OF_MEMORY
from udfs.scorers.cross_encoder import Scorer

_MB = 2**20


@contextmanager
def little_memory(megabytes: int) -> Iterator[None]:
    """Take all memory of the GPU but this much, beside what torch holds already."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    ballast = torch.empty(free - megabytes * _MB, dtype=torch.uint8, device="cuda")
    yield
    del ballast
    torch.cuda.empty_cache()  # other processes want it


def test_a_batch_that_does_not_fit_is_halved(model: Model) -> None:
    pairs = model.pairs([400] * 160)
    scorer = model.scorer(max_tokens=65_536)
    expected = scorer.score_encoded(pairs)
    assert scorer.halvings == 0
    with little_memory(600):
        scores = scorer.score_encoded(pairs)
    assert scorer.halvings > 0, "the fault never fired"
    assert (scores.status == OK).all()
    np.testing.assert_allclose(scores.logit, expected.logit, atol=0.01)


def test_a_pair_that_never_fits_is_marked_and_the_rest_scored(model: Model) -> None:
    pairs = model.pairs([8000, *[20] * 50])
    scorer = model.scorer()
    expected = scorer.score_encoded(pairs)
    with little_memory(120):
        scores = scorer.score_encoded(pairs)
    assert scores.status[0] == OUT_OF_MEMORY
    assert (scores.status[1:] == OK).all()
    np.testing.assert_allclose(scores.logit[1:], expected.logit[1:], atol=0.01)


def _score(model: Model, beyond: int) -> NDArray[np.float32]:
    """Score 200 pairs, the tenth with an id so far beyond the vocabulary's last."""
    pairs = model.pairs([30] * 200)
    ids = pairs.ids.copy()
    if beyond:
        ids[300] = model.vocabulary + beyond
    return model.scorer().score_encoded(replace(pairs, ids=ids)).logit


def test_a_fault_of_the_device_ends_the_process_and_the_next_one_scores(model: Model) -> None:
    context = multiprocessing.get_context("spawn")
    results = []
    for beyond in (0, 1000, 0):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            results.append(pool.submit(_score, model, beyond).exception() or 0)
    assert results[0] == results[2] == 0
    assert "assert" in str(results[1])


def _where(addresses: list[str]) -> list[str]:
    """Return the GPU that each address leads to."""
    found = []
    for address in addresses:
        slot = TaskSlot(1, find_gpu(address))
        prepare_process(slot)
        device = choose("cuda", slot)
        found.append(str(torch.cuda.get_device_properties(device).uuid))
    return found


def test_an_address_leads_to_that_gpu() -> None:
    context = multiprocessing.get_context("spawn")
    names = gpus()
    for addresses in (list(names), [*map(str, range(len(names)))], list(reversed(names))):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found = pool.submit(_where, addresses).result()
        for uuid, address in zip(found, addresses, strict=True):
            assert uuid in find_gpu(address)


def test_a_gpu_that_is_not_there_is_refused(model: Model) -> None:
    spec = model.scorer()._spec
    with pytest.raises(RuntimeError, match="without the GPU"):
        Scorer.load(model.path, spec, TaskSlot(1, "GPU-none"))
