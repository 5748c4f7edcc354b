"""The scoring UDF, and what else runs in Spark tasks. The only module here that imports pyspark."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, replace
from functools import cache
from itertools import chain, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark import Accumulator, SparkFiles, TaskContext
from pyspark.accumulators import AccumulatorParam
from pyspark.sql import Column
from pyspark.sql.pandas.functions import pandas_udf

from udfs.devices import TaskSlot, find_gpu, gpus
from udfs.limits import Peak, peak
from udfs.scorers.base import PairScorer, Scores, Usage, new_scores
from udfs.spec import ScorerSpec
from udfs.trial import Trial, in_fresh_process
from udfs.worker import Loaded, get_scorer

if TYPE_CHECKING:
    from udfs.scorers.remote import RemoteScorer

SCORE_SCHEMA: Final = (
    "logit float, n_tokens int, n_padded int, truncated boolean, device_ms float, status string"
)
PASSAGE_SCHEMA: Final = "n_passages int, passage_start int, passage_end int, first_logit float"
_OF_PASSAGES: Final = [column.split()[0] for column in PASSAGE_SCHEMA.split(", ")]
NULL_TEXT: Final = "null_text"
_ARCHIVE: Final = "archive:"
_WINDOW_CHARACTERS: Final = 2**25

Pairs = tuple[pd.Series, pd.Series]


class PeakParam(AccumulatorParam[Peak]):
    """An accumulator that keeps the larger of two peaks, so that a repeated task does no harm."""

    def zero(self, value: Peak) -> Peak:
        """Return the peak of nothing."""
        return Peak()

    def addInPlace(self, value1: Peak, value2: Peak) -> Peak:  # noqa: N802 (pyspark's name)
        """Return the larger, part by part."""
        parts = zip(astuple(value1), astuple(value2), strict=True)
        return Peak(*(max(pair, key=lambda part: part or 0.0) for pair in parts))


class UsageParam(AccumulatorParam[Usage]):
    """An accumulator that sums: what a repeated task has asked for is paid for, too."""

    def zero(self, value: Usage) -> Usage:
        """Return what nothing costs."""
        return Usage()

    def addInPlace(self, value1: Usage, value2: Usage) -> Usage:  # noqa: N802 (pyspark's name)
        """Return the sum."""
        return value1 + value2


def score_schema(spec: ScorerSpec) -> str:
    """Return the columns of scores: `SCORE_SCHEMA`, with passages also `PASSAGE_SCHEMA`."""
    return f"{SCORE_SCHEMA}, {PASSAGE_SCHEMA}" if spec.passages else SCORE_SCHEMA


def rerank_udf(
    spec: ScorerSpec, peaks: Accumulator[Peak] | None = None,
    usage: Accumulator[Usage] | None = None,
) -> Callable[..., Column]:  # fmt: skip
    """Return an iterator Pandas UDF that scores columns: `rerank_udf(spec)("query", "doc")`.

    On the driver this only wraps `spec`; each Python worker loads the model when its first batch
    arrives, and keeps it for later tasks. The result is a struct column, `score_schema`: the raw
    float32 logit (null unless status is `ok`), tokens given to the model, whether the pair was
    cut, the pair's share of device time [ms], and a status (`ok`, `nonfinite`, `out_of_memory`,
    `null_text` where a side is null). A probability is the logit's sigmoid.

    The UDF is marked nondeterministic so that Spark does not duplicate it, but Spark may still
    run it again for an action that runs again: write the result once, then read what was written.
    What scoring needed goes to `peaks`, what a remote model has cost to `usage`; a session of Spark
    Connect has neither.
    """

    def score(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.DataFrame]:
        if (first := next(batches, None)) is None:
            return  # an empty partition needs no model
        loaded = _load(spec)
        yield from score_batches(loaded.scorer, chain([first], batches), spec.window)
        if peaks is not None:
            peaks.add(_needed(loaded))
        if usage is not None and spec.remote is not None:
            usage.add(cast("RemoteScorer", loaded.scorer).take_usage())

    udf = pandas_udf(score_schema(spec))(score)  # type: ignore[call-overload]
    return cast("Callable[..., Column]", udf.asNondeterministic())


def rerank_rows(
    spec: ScorerSpec, peaks: Accumulator[Peak]
) -> Callable[[Iterable[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """Return the same for `DataFrame.mapInPandas`, which can have executors of its own.

    Takes `pair_key`, `query` and `doc`; gives `pair_key` and `score_schema`. What scoring needed
    goes to `peaks`.
    """

    def score(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        frames = iter(frames)
        if (first := next(frames, None)) is None:
            return
        loaded = _load(spec)
        frames, kept = tee(chain([first], frames))
        texts = ((frame["query"], frame["doc"]) for frame in frames)
        scored = score_batches(loaded.scorer, texts, spec.window)
        for frame, scores in zip(kept, scored, strict=True):
            yield scores.assign(pair_key=frame["pair_key"].to_numpy())
        peaks.add(_needed(loaded))

    return score


def run_trial(
    spec: ScorerSpec, queries: Sequence[str], docs: Sequence[str]
) -> Callable[[Iterable[Any]], Iterator[Trial]]:
    """Return a function for `RDD.mapPartitions` over one partition: measure a scorer there."""

    def run(rows: Iterable[Any]) -> Iterator[Trial]:
        deque(rows, maxlen=0)  # Spark ends a worker that leaves input unread
        yield in_fresh_process(model_folder(spec), spec, task_slot(), queries, docs)

    return run


def model_folder(spec: ScorerSpec) -> Path:
    """Return the folder of a model in this process, also of one that Spark has unpacked."""
    if not spec.model_path.startswith(_ARCHIVE):
        return Path(spec.model_path)
    return Path(SparkFiles.getRootDirectory(), spec.model_path.removeprefix(_ARCHIVE))


def task_slot() -> TaskSlot:
    """Return cores and GPU of the current Spark task; of the whole process outside of one."""
    context = TaskContext.get()
    if context is None:
        return TaskSlot()
    given = context.resources().get("gpu")
    return TaskSlot(context.cpus(), find_gpu(given.addresses[0]) if given else _share_gpu())


@cache
def _share_gpu() -> str | None:
    """Return the GPU of a process that Spark gives none: its first task's number spreads them."""
    context = TaskContext.get()
    assert context is not None
    return gpus()[context.partitionId() % len(gpus())] if gpus() else None


def _needed(loaded: Loaded) -> Peak:
    return replace(peak(), load_seconds=loaded.seconds, rescored=loaded.scorer.rescored)


def _load(spec: ScorerSpec) -> Loaded:
    return get_scorer(model_folder(spec), spec, task_slot())


def score_batches(
    scorer: PairScorer, batches: Iterator[Pairs], window: int
) -> Iterator[pd.DataFrame]:
    """Score Arrow batches of texts, a window of so many pairs at a time; one frame for each."""
    ahead = 1 if scorer.encodes_ahead else 0
    waiting: deque[tuple[list[int], NDArray[np.bool_], Future[Any]]] = deque()

    def score_next() -> Iterator[pd.DataFrame]:
        sizes, given, encoded = waiting.popleft()
        frame = _to_frame(scorer.score_encoded(encoded.result()), given)
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            yield frame.iloc[end - size : end]

    with ThreadPoolExecutor(1, "encode") as pool:
        for pairs in _windows(batches, window, first=window // 8 if ahead else window):
            queries = pd.concat([query for query, _ in pairs], ignore_index=True)
            docs = pd.concat([doc for _, doc in pairs], ignore_index=True)
            given = (queries.notna() & docs.notna()).to_numpy()
            encoded = pool.submit(scorer.encode, queries[given].tolist(), docs[given].tolist())
            waiting.append(([len(query) for query, _ in pairs], given, encoded))
            if len(waiting) > ahead:
                yield from score_next()
        while waiting:
            yield from score_next()


def _windows(batches: Iterator[Pairs], size: int, first: int) -> Iterator[list[Pairs]]:
    """Collect Arrow batches until they hold `size` pairs, so that like lengths can meet.

    A window of many megabytes ends early: the longest documents of a sorted job come together. So
    does the first, of `first` pairs, where a GPU waits until it is encoded.
    """
    window: list[Pairs] = []
    held = characters = 0
    for batch in batches:
        window.append(batch)
        held += len(batch[0])
        characters += sum(len(text) for side in batch for text in side if text is not None)
        if held >= first or characters >= _WINDOW_CHARACTERS:
            yield window
            window, held, characters, first = [], 0, 0, size
    if window:
        yield window


def _to_frame(scores: Scores, given: NDArray[np.bool_]) -> pd.DataFrame:
    """Return scores of the given rows, with `null_text` for the others."""
    whole = new_scores(len(given), NULL_TEXT, scores.dtype)
    whole[given] = scores
    lost, unknown = ~np.isfinite(whole.logit), whole.n_tokens == 0  # a server does not tell
    logit = pd.arrays.FloatingArray(whole.logit.copy(), lost)
    n_tokens = pd.arrays.IntegerArray(whole.n_tokens.copy(), unknown)
    truncated = pd.arrays.BooleanArray(whole.truncated.copy(), unknown)
    frame = pd.DataFrame(whole).assign(logit=logit, n_tokens=n_tokens, truncated=truncated)
    for name in frame.columns.intersection(_OF_PASSAGES):
        kind = pd.arrays.FloatingArray if name == "first_logit" else pd.arrays.IntegerArray
        frame[name] = kind(whole[name].copy(), lost)
    return frame
