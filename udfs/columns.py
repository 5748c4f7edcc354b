"""The scoring UDF. But for `udfs.daemon`, the only module of `udfs` that imports pyspark.

from udfs.columns import rerank_udf
scored = df.withColumn("s", rerank_udf(spec)("query", "doc"))
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
import pandas as pd
from pyspark import SparkFiles, TaskContext
from pyspark.sql import Column
from pyspark.sql.pandas.functions import pandas_udf

from udfs.devices import TaskSlot, common_precision, describe, process_slot
from udfs.scorer import PairScorer
from udfs.scores import Scores
from udfs.spec import Precision, ScorerSpec
from udfs.trial import Trial, in_fresh_process
from udfs.worker import get_scorer, locate

SCORE_SCHEMA: Final = (
    "logit float, n_tokens int, n_padded int, truncated boolean, device_ms float, status string"
)
ROWS_SCHEMA: Final = f"pair_key string, {SCORE_SCHEMA}"
NULL_TEXT: Final = "null_text"
_WINDOW_CHARACTERS: Final = 2**25

Pairs = tuple[pd.Series, pd.Series]


def rerank_udf(spec: ScorerSpec) -> Callable[..., Column]:
    """An iterator Pandas UDF that scores (query, document) columns.

    On the driver this only wraps `spec`; each Python worker loads the model when its first batch
    arrives, unless it was forked from a process that has it, and keeps it for later tasks. The
    result is a struct column, `SCORE_SCHEMA`: the raw float32 logit (null unless status is `ok`),
    tokens given to the model, whether the pair was cut, the pair's share of device time [ms], and a
    status (`ok`, `nonfinite`, `out_of_memory`, `null_text` where a side is null). A probability is
    the logit's sigmoid.

    The UDF is marked nondeterministic so that Spark does not duplicate it, but Spark may still
    run it again for an action that runs again: write the result once, then read what was written.
    """

    udf = pandas_udf(SCORE_SCHEMA)(_scoring(spec))  # type: ignore[call-overload]
    return cast("Callable[..., Column]", udf.asNondeterministic())


def rerank_rows(spec: ScorerSpec) -> Callable[[Iterable[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """The same for `DataFrame.mapInPandas`, which can be given executors of its own.

    Takes `pair_key`, `query` and `doc`; gives `ROWS_SCHEMA`.
    """
    score = _scoring(spec)

    def score_rows(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        keys: deque[pd.Series] = deque()

        def texts() -> Iterator[Pairs]:
            for frame in frames:
                keys.append(frame["pair_key"])
                yield frame["query"], frame["doc"]

        for scores in score(texts()):
            yield scores.assign(pair_key=keys.popleft().to_numpy())

    return score_rows


def _scoring(spec: ScorerSpec) -> Callable[[Iterator[Pairs]], Iterator[pd.DataFrame]]:
    """What runs on an executor: batches of texts in, as many frames of scores out."""

    def score(batches: Iterator[Pairs]) -> Iterator[pd.DataFrame]:
        loaded = get_scorer(spec, task_slot(), archive_root=SparkFiles.getRootDirectory)
        for window in _windows(batches, spec.window):
            yield from _score_window(loaded.scorer, window)

    return score


@dataclass(frozen=True)
class Probed:
    """What a task would score on (see `devices.describe`), and what starting took it.

    Attributes:
        device: `cuda`, `cpu-bf16` or `cpu`.
        model_load: what loading took, be it in the process that workers are forked from [s]; None
            if it was not loaded.
        first_score: of one short pair after that [s].
    """

    device: str
    model_load: float | None = None
    first_score: float | None = None


def probe_devices(
    draft: ScorerSpec, precision: Precision | None, *, load: bool
) -> Callable[[Iterable[Any]], Iterator[Probed]]:
    """For `RDD.mapPartitions`: one finding per task.

    Args:
        draft: the scorer, but for its precision and how texts are made.
        precision: of the scorer; None: what this task's device is best at.
        load: whether to load the model too, so that this worker has it when the first pairs come.
    """

    def probe(rows: Iterable[Any]) -> Iterator[Probed]:
        _read_through(rows)
        device = describe(draft.device, task_slot())
        if not load:
            yield Probed(device)
            return
        spec = replace(draft, precision=precision or common_precision([device]))
        loaded = get_scorer(spec, task_slot(), archive_root=SparkFiles.getRootDirectory)
        start = time.perf_counter()
        warm_up(loaded.scorer)
        yield Probed(device, loaded.seconds, time.perf_counter() - start)

    return probe


def warm_up(scorer: PairScorer) -> None:
    """Score a pair that means nothing, so that the first real one does not pay for the start."""
    scorer.score(["a"], ["b"])


def run_trial(
    spec: ScorerSpec, queries: Sequence[str], docs: Sequence[str]
) -> Callable[[Iterable[Any]], Iterator[Trial]]:
    """For `RDD.mapPartitions` over one partition: measure a scorer where it will score."""

    def run(rows: Iterable[Any]) -> Iterator[Trial]:
        _read_through(rows)
        path = locate(spec.model_path, SparkFiles.getRootDirectory)
        yield in_fresh_process(path, spec, task_slot(), queries, docs)

    return run


def _read_through(rows: Iterable[Any]) -> None:
    """Spark ends a worker that leaves input unread; what it has loaded would be lost."""
    deque(rows, maxlen=0)


def task_slot() -> TaskSlot:
    """Cores and GPU of the current Spark task; of the whole process outside of one."""
    context = TaskContext.get()
    if context is None:
        return process_slot()
    gpu = context.resources().get("gpu")
    return TaskSlot(cpus=context.cpus(), gpu=gpu.addresses[0] if gpu else None)


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


def _score_window(scorer: PairScorer, window: list[Pairs]) -> Iterator[pd.DataFrame]:
    """Score a window as one, and give it back batch by batch in the order of the rows."""
    queries = pd.concat([query for query, _ in window], ignore_index=True)
    docs = pd.concat([doc for _, doc in window], ignore_index=True)
    given = (queries.notna() & docs.notna()).to_numpy()
    scored = scorer.score(queries[given].tolist(), docs[given].tolist())
    frame = _to_frame(scored, given)
    start = 0
    for query, _ in window:
        yield frame.iloc[start : start + len(query)]
        start += len(query)
    if start != len(frame):
        raise RuntimeError(f"{len(frame)} rows came in, {start} went out; please report this")


def _to_frame(scores: Scores, given: Any) -> pd.DataFrame:
    """Scores of the given rows, with rows that had no text in their places."""
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
