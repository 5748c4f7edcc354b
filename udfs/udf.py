"""The scoring UDF, and what else runs in Spark tasks. The only module here that imports pyspark.

from udfs.udf import rerank_udf
scored = df.withColumn("s", rerank_udf(spec)("query", "doc"))
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, Final, cast

import numpy as np
import pandas as pd
from pyspark import Accumulator, SparkFiles, TaskContext
from pyspark.accumulators import AccumulatorParam
from pyspark.sql import Column
from pyspark.sql.pandas.functions import pandas_udf

from udfs.devices import TaskSlot, gpu_count, process_slot
from udfs.memory import Peak, peak
from udfs.scorers.base import PairScorer, Scores
from udfs.spec import ScorerSpec
from udfs.trial import Trial, in_fresh_process
from udfs.worker import get_scorer, locate

SCORE_SCHEMA: Final = (
    "logit float, n_tokens int, n_padded int, truncated boolean, device_ms float, status string"
)
ROWS_SCHEMA: Final = f"pair_key string, {SCORE_SCHEMA}"
NULL_TEXT: Final = "null_text"
_WINDOW_CHARACTERS: Final = 2**25

Pairs = tuple[pd.Series, pd.Series]


class PeakParam(AccumulatorParam[Peak]):
    """An accumulator that keeps the larger of two peaks, so that a repeated task does no harm."""

    def zero(self, value: Peak) -> Peak:
        """Return the peak of nothing."""
        return Peak()

    def addInPlace(self, value1: Peak, value2: Peak) -> Peak:  # noqa: N802 (pyspark's name)
        """Return the larger, part by part."""
        return value1 | value2


def rerank_udf(spec: ScorerSpec, peaks: Accumulator[Peak] | None = None) -> Callable[..., Column]:
    """Return an iterator Pandas UDF that scores (query, document) columns.

    On the driver this only wraps `spec`; each Python worker loads the model when its first batch
    arrives, and keeps it for later tasks. The result is a struct column, `SCORE_SCHEMA`: the raw
    float32 logit (null unless status is `ok`), tokens given to the model, whether the pair was
    cut, the pair's share of device time [ms], and a status (`ok`, `nonfinite`, `out_of_memory`,
    `null_text` where a side is null). A probability is the logit's sigmoid.

    The UDF is marked nondeterministic so that Spark does not duplicate it, but Spark may still
    run it again for an action that runs again: write the result once, then read what was written.

    Args:
        spec: the scorer.
        peaks: an accumulator (`PeakParam`) that is told what scoring needed; a session of Spark
            Connect has none.
    """
    udf = pandas_udf(SCORE_SCHEMA)(_scoring(spec, peaks))  # type: ignore[call-overload]
    return cast("Callable[..., Column]", udf.asNondeterministic())


def rerank_rows(
    spec: ScorerSpec, peaks: Accumulator[Peak] | None = None
) -> Callable[[Iterable[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """Return the same for `DataFrame.mapInPandas`, which can have executors of its own.

    Takes `pair_key`, `query` and `doc`; gives `ROWS_SCHEMA`.
    """
    score = _scoring(spec, peaks)

    def score_rows(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        keys: deque[pd.Series] = deque()

        def texts() -> Iterator[Pairs]:
            for frame in frames:
                keys.append(frame["pair_key"])
                yield frame["query"], frame["doc"]

        for scores in score(texts()):
            yield scores.assign(pair_key=keys.popleft().to_numpy())

    return score_rows


def run_trial(
    spec: ScorerSpec, queries: Sequence[str], docs: Sequence[str]
) -> Callable[[Iterable[Any]], Iterator[Trial]]:
    """Return a function for `RDD.mapPartitions` over one partition: measure a scorer there."""

    def run(rows: Iterable[Any]) -> Iterator[Trial]:
        deque(rows, maxlen=0)  # Spark ends a worker that leaves input unread
        path = locate(spec.model_path, SparkFiles.getRootDirectory)
        yield in_fresh_process(path, spec, task_slot(), queries, docs)

    return run


def task_slot() -> TaskSlot:
    """Return cores and GPU of the current Spark task; of the whole process outside of one."""
    context = TaskContext.get()
    if context is None:
        return process_slot()
    given = context.resources().get("gpu")
    gpu = given.addresses[0] if given else _share_gpu()
    return TaskSlot(cpus=context.cpus(), gpu=gpu)


@cache
def _share_gpu() -> str | None:
    """Return the GPU of a process that Spark gives none: its first task's number spreads them."""
    context = TaskContext.get()
    assert context is not None
    return str(context.partitionId() % gpu_count()) if gpu_count() else None


def _scoring(
    spec: ScorerSpec, peaks: Accumulator[Peak] | None
) -> Callable[[Iterator[Pairs]], Iterator[pd.DataFrame]]:
    """Return what runs on an executor: batches of texts in, as many frames of scores out."""

    def score(batches: Iterator[Pairs]) -> Iterator[pd.DataFrame]:
        loaded = get_scorer(spec, task_slot(), archive_root=SparkFiles.getRootDirectory)
        yield from score_batches(loaded.scorer, batches, spec.window)
        if peaks is not None:
            peaks.add(replace(peak(), load_seconds=loaded.seconds))

    return score


def score_batches(
    scorer: PairScorer, batches: Iterator[Pairs], window: int
) -> Iterator[pd.DataFrame]:
    """Score Arrow batches of texts, a window of so many pairs at a time; one frame for each."""
    for batches_of_one, scores in _score_windows(scorer, _windows(batches, window)):
        start = 0
        for queries, _ in batches_of_one:
            yield scores.iloc[start : start + len(queries)]
            start += len(queries)
        if start != len(scores):
            raise RuntimeError(f"{len(scores)} rows came in, {start} went out; please report this")


def _windows(batches: Iterator[Pairs], size: int) -> Iterator[list[Pairs]]:
    """Collect Arrow batches until they hold `size` pairs, so that like lengths can meet.

    A window ends early when its texts are many megabytes: a job sorts its pairs by length, so the
    longest documents of all come together.
    """
    window: list[Pairs] = []
    held = characters = 0
    for batch in batches:
        window.append(batch)
        held += len(batch[0])
        characters += sum(len(text) for side in batch for text in side if text is not None)
        if held >= size or characters >= _WINDOW_CHARACTERS:
            yield window
            window, held, characters = [], 0, 0
    if window:
        yield window


def _score_windows(
    scorer: PairScorer, windows: Iterator[list[Pairs]]
) -> Iterator[tuple[list[Pairs], pd.DataFrame]]:
    """Score windows in order; where the scorer asks for it, a thread encodes one ahead."""
    if not scorer.encodes_ahead:
        for window in windows:
            given, texts = _texts(window)
            yield window, _to_frame(scorer.score_encoded(scorer.encode(*texts)), given)
        return
    waiting: deque[tuple[list[Pairs], Any, Future[Any]]] = deque()
    with ThreadPoolExecutor(1, "encode") as pool:
        for window in windows:
            given, texts = _texts(window)
            waiting.append((window, given, pool.submit(scorer.encode, *texts)))
            if len(waiting) > 1:
                yield _score_next(scorer, *waiting.popleft())
        while waiting:
            yield _score_next(scorer, *waiting.popleft())


def _score_next(
    scorer: PairScorer, window: list[Pairs], given: Any, encoded: Future[Any]
) -> tuple[list[Pairs], pd.DataFrame]:
    return window, _to_frame(scorer.score_encoded(encoded.result()), given)


def _texts(window: list[Pairs]) -> tuple[Any, tuple[list[str], list[str]]]:
    """Return which rows of a window have both texts, bool[N], and the texts of those."""
    queries = pd.concat([query for query, _ in window], ignore_index=True)
    docs = pd.concat([doc for _, doc in window], ignore_index=True)
    given = (queries.notna() & docs.notna()).to_numpy()
    return given, (queries[given].tolist(), docs[given].tolist())


def _to_frame(scores: Scores, given: Any) -> pd.DataFrame:
    """Return scores of the given rows, with `null_text` for the others."""
    whole = Scores.empty(len(given))
    whole.status[:] = NULL_TEXT
    for part in ("logit", "n_tokens", "n_padded", "truncated", "device_ms", "status"):
        getattr(whole, part)[given] = getattr(scores, part)
    return pd.DataFrame(
        {
            "logit": pd.arrays.FloatingArray(whole.logit, ~np.isfinite(whole.logit)),
            "n_tokens": whole.n_tokens,
            "n_padded": whole.n_padded,
            "truncated": whole.truncated,
            "device_ms": whole.device_ms,
            "status": whole.status,
        }
    )
