"""Draw the pairs that settings are measured on: a few candidates each of some queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.config import TuneConfig
from jobs.input.layouts import InputTable
from jobs.input.validation import with_pair_keys

_ON_CPU, _ON_GPU = 320, 4096  # pairs
_ORDER = ("unanswered", "query_hash", "query_id", "position")
_LONGEST = 200_000  # characters of a text; more than any max_length keeps


@dataclass(frozen=True)
class Sample:
    """N pairs of whole queries, query by query.

    Attributes:
        query_ids: of each pair.
        doc_ids: of each pair.
        queries: texts.
        docs: texts.
        grades: float64[N], NaN where a pair is not judged.
    """

    query_ids: list[str]
    doc_ids: list[str]
    queries: list[str]
    docs: list[str]
    grades: NDArray[np.float64]

    @property
    def labelled(self) -> bool:
        """Return whether any pair is relevant, so that an order can be judged."""
        return bool((np.nan_to_num(self.grades) > 0).any())

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.docs)

    def first(self, pairs: int) -> Sample:
        """Return whole queries from the start that have at most `pairs` pairs; at least one."""
        starts = [at for at in range(1, len(self)) if self.query_ids[at] != self.query_ids[at - 1]]
        ends = [*starts, len(self)]
        end = max((end for end in ends if end <= pairs), default=ends[0])
        return Sample(
            self.query_ids[:end], self.doc_ids[:end], self.queries[:end], self.docs[:end],
            self.grades[:end],
        )  # fmt: skip


def draw_sample(
    pairs: InputTable, qrels: DataFrame | None, config: TuneConfig, *, on_gpu: bool
) -> Sample:
    """Draw queries and their candidates by hashes of their ids, so the same ones every time.

    Up to half of a query's candidates are relevant ones, as without them there is no order to
    judge. Queries without a relevant candidate are drawn last.
    """
    rows = with_pair_keys(pairs).where(F.isnotnull("pair_key"))
    candidates = rows.groupBy("query_id", "doc_id").agg(F.min("pair_key").alias("pair_key"))
    if qrels is not None:
        grades = qrels.select("query_id", "doc_id", F.col("relevance").alias("grade"))
        candidates = candidates.join(grades, on=["query_id", "doc_id"], how="left")
    else:
        candidates = candidates.withColumn("grade", F.lit(None).cast("int"))
    number = candidates.select(F.count_distinct("query_id")).collect()[0][0]
    wanted = config.pairs or (_ON_GPU if on_gpu else _ON_CPU)
    each = max(config.candidates, math.ceil(wanted / max(1, number)))
    chosen = _draw(candidates, each, config.seed).orderBy(*_ORDER).limit(max(wanted, each))
    # Only the chosen ids meet the texts, which are most of the table.
    texts = [F.substring(side, 1, _LONGEST).alias(side) for side in ("query", "doc")]
    found = (
        rows.select("query_id", "doc_id", "pair_key", *texts)
        .join(F.broadcast(chosen), on=["query_id", "doc_id", "pair_key"], how="inner")
        .dropDuplicates(["query_id", "doc_id"])
        .orderBy(*_ORDER)
        .toPandas()
    )
    return Sample(
        found["query_id"].to_list(), found["doc_id"].to_list(), found["query"].to_list(),
        found["doc"].to_list(), found["grade"].to_numpy(np.float64, na_value=np.nan),
    )  # fmt: skip


def _draw(candidates: DataFrame, each: int, seed: int) -> DataFrame:
    """Keep up to `each` candidates of every query, and say in which order they are drawn.

    Columns: query_id, doc_id, pair_key, grade, unanswered (no relevant candidate), query_hash,
    position (of the candidate, from 1).
    """
    relevant = F.coalesce(F.col("grade") > 0, F.lit(False))
    by_hash = F.xxhash64("query_id", "doc_id", F.lit(seed))
    query = Window.partitionBy("query_id")
    alike = Window.partitionBy("query_id", relevant).orderBy(by_hash, "doc_id")
    flagged = candidates.withColumns(
        {
            "ahead": relevant & (F.row_number().over(alike) <= each // 2),
            "unanswered": ~F.max(relevant).over(query),
            "query_hash": F.xxhash64("query_id", F.lit(seed)),
        }
    )
    position = F.row_number().over(query.orderBy(F.desc("ahead"), by_hash, "doc_id"))
    return flagged.withColumn("position", position).where(F.col("position") <= each).drop("ahead")
