"""The scoring UDF.

from udfs.udf import rerank_udf
scored = df.withColumn("s", rerank_udf(spec)("query", "doc"))
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, cast

import numpy as np
import pandas as pd
from pyspark import Accumulator, SparkFiles
from pyspark.sql import Column
from pyspark.sql.pandas.functions import pandas_udf

from udfs.memory import Peak
from udfs.scorers.cross_encoder import PairScorer
from udfs.scores import Scores
from udfs.spec import ScorerSpec
from udfs.tasks import task_slot
from udfs.worker import get_scorer

SCORE_SCHEMA: Final = (
    "logit float, n_tokens int, n_padded int, truncated boolean, device_ms float, status string"
)
ROWS_SCHEMA: Final = f"pair_key string, {SCORE_SCHEMA}"
NULL_TEXT: Final = "null_text"
_WINDOW_CHARACTERS: Final = 2**25

Pairs = tuple[pd.Series, pd.Series]


def rerank_udf(spec: ScorerSpec, peak: Accumulator[Peak] | None = None) -> Callable[..., Column]:
    """An iterator Pandas UDF that scores (query, document) columns.

    On the driver this only wraps `spec`; each Python worker loads the model when its first batch
    arrives, unless it was forked from a process that has it, and keeps it for later tasks. The
    result is a struct column, `SCORE_SCHEMA`: the raw float32 logit (null unless status is `ok`),
    tokens given to the model, whether the pair was cut, the pair's share of device time [ms], and a
    status (`ok`, `nonfinite`, `out_of_memory`, `null_text` where a side is null). A probability is
    the logit's sigmoid.

    The UDF is marked nondeterministic so that Spark does not duplicate it, but Spark may still
    run it again for an action that runs again: write the result once, then read what was written.

    Args:
        spec: the scorer.
        peak: an accumulator (`udfs.tasks.PeakParam`) that is told what scoring took of memory; a
            session of Spark Connect has none.
    """

    udf = pandas_udf(SCORE_SCHEMA)(_scoring(spec, peak))  # type: ignore[call-overload]
    return cast("Callable[..., Column]", udf.asNondeterministic())


def rerank_rows(
    spec: ScorerSpec, peak: Accumulator[Peak] | None = None
) -> Callable[[Iterable[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """The same for `DataFrame.mapInPandas`, which can be given executors of its own.

    Takes `pair_key`, `query` and `doc`; gives `ROWS_SCHEMA`.
    """
    score = _scoring(spec, peak)

    def score_rows(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        keys: deque[pd.Series] = deque()

        def texts() -> Iterator[Pairs]:
            for frame in frames:
                keys.append(frame["pair_key"])
                yield frame["query"], frame["doc"]

        for scores in score(texts()):
            yield scores.assign(pair_key=keys.popleft().to_numpy())

    return score_rows


def _scoring(
    spec: ScorerSpec, peak: Accumulator[Peak] | None
) -> Callable[[Iterator[Pairs]], Iterator[pd.DataFrame]]:
    """What runs on an executor: batches of texts in, as many frames of scores out."""

    def score(batches: Iterator[Pairs]) -> Iterator[pd.DataFrame]:
        loaded = get_scorer(spec, task_slot(), archive_root=SparkFiles.getRootDirectory)
        for window in _windows(batches, spec.window):
            yield from _score_window(loaded.scorer, window)
        if peak is not None:
            peak.add(loaded.scorer.peak())

    return score


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
