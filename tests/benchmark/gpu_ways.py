"""The ways of `tests.benchmark.gpu`, each in a process of its own that stays for all rounds."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.benchmark.gpu_profile import profiled
from tests.benchmark.texts import job_order
from udfs.devices import TaskSlot, find_gpu
from udfs.limits import peak
from udfs.scorers.base import OK
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import Precision, ScorerSpec

_WARM_UP: Final = 16  # one pair in so many is scored before the clock starts
_PATIENCE: Final = 120.0  # longest that a lane waits for another [s]
_LAST_WORDS: Final = 300  # characters of an error
# The kit's batches are limited by tokens alone.
_MAX_PAIRS: Final = 8192


@dataclass(frozen=True)
class Setup:
    """What a way is loaded with.

    Attributes:
        model: folder of the checkpoint.
        texts: folder with MIX.json, queries and documents.
        device: cuda or cpu.
        precision: number type of the model.
        max_length: longest pair [tokens].
        max_tokens: size of a batch of the engine [tokens].
        window: pairs that the engine holds and sorts at a time.
        cores: that the way may use, of all its processes.
    """

    model: str
    texts: str
    device: str
    precision: Precision
    max_length: int
    max_tokens: int
    window: int
    cores: int

    def spec(self, **changes: Any) -> ScorerSpec:
        """Return the engine's settings."""
        spec = ScorerSpec(
            self.model, "", self.max_length, precision=self.precision, device=self.device,
            max_tokens=self.max_tokens, max_pairs=_MAX_PAIRS, window=self.window,
        )  # fmt: skip
        return replace(spec, **changes)


class Order(NamedTuple):
    """One run: the first so many pairs of a mix; a peer's batch size; or a profile instead."""

    mix: str
    pairs: int
    batch: int = 0
    profile: bool = False


@dataclass(frozen=True)
class Part:
    """What one process did in a run: monotonic start and end [s], and its pairs.

    Attributes:
        start, end: monotonic time of this machine [s].
        rows: int64[N], which pairs were scored.
        logits: float32[N]; None of the tokenizer.
        padding: tokens computed for nothing; None if the way does not tell.
        device_mb: most memory of tensors on the GPU [MB, 2^20 bytes]; None without one.
    """

    start: float
    end: float
    rows: NDArray[np.int64]
    logits: NDArray[np.float32] | None
    padding: int | None
    device_mb: float | None


Found = tuple[NDArray[np.float32] | None, int | None]
Work = Callable[[Sequence[str], Sequence[str], int], Found]


def serve(
    pipe: Connection, way: str, setup: Setup, lane: int, lanes: int, barrier: Barrier | None
) -> None:
    """Load a way, then do what is ordered; an error is answered as a string."""
    try:
        work = _load(way, replace(setup, cores=max(setup.cores // lanes, 1)))
    except Exception as error:
        pipe.send(_said(error))
        return
    pipe.send(None)
    while (order := pipe.recv()) is not None:
        try:
            queries, docs = (side[: order.pairs] for side in texts_of(setup.texts, order.mix))
            rows = job_order(queries, docs)[lane::lanes]
            texts = [queries[row] for row in rows], [docs[row] for row in rows]
            if order.profile:
                pipe.send(_profile(work, *texts, setup))
            else:
                pipe.send(_part(work, rows, *texts, order.batch, barrier))
        except Exception as error:
            if barrier is not None:
                barrier.abort()
            pipe.send(_said(error))


@cache
def texts_of(folder: str, mix: str) -> tuple[list[str], list[str]]:
    """Return queries and documents of a mix."""
    queries, docs = json.loads(Path(folder, f"{mix}.json").read_text(encoding="utf-8"))
    return queries, docs


def _part(
    work: Work, rows: NDArray[np.int64], queries: Sequence[str], docs: Sequence[str], batch: int,
    barrier: Barrier | None,
) -> Part:  # fmt: skip
    """Warm up with some of the pairs, wait for the other lanes, and score them all."""
    work(queries[::_WARM_UP], docs[::_WARM_UP], batch)
    if peak().device_mb is not None:
        import torch

        torch.cuda.reset_peak_memory_stats()
    if barrier is not None:
        barrier.wait(_PATIENCE)
    start = time.monotonic()
    logits, padding = work(queries, docs, batch)
    return Part(start, time.monotonic(), rows, logits, padding, peak().device_mb)


def _said(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"[:_LAST_WORDS]


def _load(way: str, setup: Setup) -> Work:
    if way.startswith("sentence_transformers"):
        return _sentence_transformers(setup, "flash_attention_2" if way.endswith("fa2") else "sdpa")
    if way == "flagembedding":
        return _flagembedding(setup)
    if way == "tokenizer":
        return _tokenizer(setup)
    if way == "engine_padded":
        _never_unpadded()
    # The reference for logits is padded, and uses none of the attention kernels of the others.
    return Engine(setup, attention="eager" if way == "reference" else "auto")


class Engine:
    """The scorer, windows at a time; a thread encodes ahead, as `udfs.udf.score_batches` does."""

    def __init__(self, setup: Setup, attention: str = "auto") -> None:
        """Load the model."""
        self.window = setup.window
        slot = TaskSlot(setup.cores, find_gpu("0") if setup.device == "cuda" else None)
        self.scorer = Scorer.load(Path(setup.model), setup.spec(attention=attention), slot)

    def __call__(self, queries: Sequence[str], docs: Sequence[str], batch: int) -> Found:
        """Score all pairs; RuntimeError if one of them has no score."""
        found: list[Any] = []
        waiting: deque[Any] = deque()
        ahead = 1 if self.scorer.encodes_ahead else 0
        with ThreadPoolExecutor(1, "encode") as pool:
            for start in range(0, len(queries), self.window):
                part = slice(start, start + self.window)
                waiting.append(pool.submit(self.scorer.encode, queries[part], docs[part]))
                if len(waiting) > ahead:
                    found.append(self.scorer.score_encoded(waiting.popleft().result()))
            while waiting:
                found.append(self.scorer.score_encoded(waiting.popleft().result()))
        scores = np.concatenate(found)
        if lost := int((scores["status"] != OK).sum()):
            raise RuntimeError(f"{lost} of {len(scores)} pairs have no score")
        return scores["logit"], int(scores["n_padded"].sum())


def _profile(work: Work, queries: Sequence[str], docs: Sequence[str], setup: Setup) -> Any:
    """Profile one window of the engine, encoded before."""
    assert isinstance(work, Engine)
    # Every n-th pair, as a window of the longest would show the longest only.
    some = slice(None, None, max(len(queries) // setup.window, 1))
    encoded = work.scorer.encode(queries[some], docs[some])
    work.scorer.score_encoded(encoded)
    found = profiled(lambda: work.scorer.score_encoded(encoded), cuda=setup.device == "cuda")
    return {"pairs": len(encoded.lengths), **found}


def _tokenizer(setup: Setup) -> Work:
    """Encode windows of pairs, and score none."""
    scorer = Scorer.load(
        Path(setup.model), setup.spec(backend="tokenizer"), TaskSlot(setup.cores)
    )  # fmt: skip

    def work(queries: Sequence[str], docs: Sequence[str], _: int) -> Found:
        for start in range(0, len(queries), setup.window):
            part = slice(start, start + setup.window)
            scorer.encode(queries[part], docs[part])
        return None, None

    return work


def _never_unpadded() -> None:
    """Let the engine of this process pad, as it does for models of other families."""
    from udfs.forward import transformers

    transformers.supports = lambda model, device: False


def _quiet() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")


def _flagembedding(setup: Setup) -> Work:
    """`FlagReranker(model, use_fp16=True).compute_score(pairs)` as documented, raw logits."""
    _quiet()
    from FlagEmbedding import FlagReranker

    cuda = setup.device == "cuda"
    model = FlagReranker(
        setup.model, use_fp16=setup.precision == "fp16", max_length=setup.max_length,
        devices="cuda:0" if cuda else "cpu",
    )  # fmt: skip

    def work(queries: Sequence[str], docs: Sequence[str], batch: int) -> Found:
        pairs = list(zip(queries, docs, strict=True))
        return np.array(model.compute_score(pairs, batch_size=batch), np.float32), None

    return work


def _sentence_transformers(setup: Setup, attention: str) -> Work:
    """`CrossEncoder(model).predict(pairs)` as documented, raw logits."""
    _quiet()
    import torch
    from sentence_transformers import CrossEncoder

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(setup.precision, torch.float32)
    model = CrossEncoder(
        setup.model, device=setup.device, max_length=setup.max_length,
        model_kwargs={"dtype": dtype, "attn_implementation": attention},
    )  # fmt: skip

    def work(queries: Sequence[str], docs: Sequence[str], batch: int) -> Found:
        pairs = list(zip(queries, docs, strict=True))
        logits = model.predict(
            pairs, batch_size=batch, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        return np.asarray(logits, np.float32), None

    return work


def has_flash_attention() -> bool:
    """Return whether the package that FlashAttention-2 needs is installed."""
    return importlib.util.find_spec("flash_attn") is not None
