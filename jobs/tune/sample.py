"""The pairs that settings are measured on: a few candidates each of some queries."""

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
_ORDER = ("unanswered", "drawn", "query_id")
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
        """Whether any pair is relevant, so that an order can be judged."""
        return bool((np.nan_to_num(self.grades) > 0).any())

    def __len__(self) -> int:
        """InputTable."""
        return len(self.docs)

    def first(self, pairs: int) -> Sample:
        """Whole queries from the start, as many as make about so many pairs; at least one."""
        ends = [*np.flatnonzero(np.diff(_numbered(self.query_ids))) + 1, len(self)]
        end = int(max((end for end in ends if end <= pairs), default=ends[0]))
        return Sample(
            self.query_ids[:end], self.doc_ids[:end], self.queries[:end], self.docs[:end],
            self.grades[:end],
        )  # fmt: skip


def draw_sample(
    pairs: InputTable, qrels: DataFrame | None, config: TuneConfig, *, on_gpu: bool
) -> Sample:
    """Draw queries and their candidates by hashes of their ids, so the same ones every time.

    Of a query's candidates up to half are relevant ones, where there are any: without them there
    would be no order to judge. Queries without a relevant candidate are drawn last.
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
    chosen = _drawn(candidates, each, config.seed).limit(max(wanted, each))
    # Only the chosen ids meet the texts, which are most of the table.
    texts = [F.substring(side, 1, _LONGEST).alias(side) for side in ("query", "doc")]
    found = (
        rows.select("query_id", "doc_id", "pair_key", *texts)
        .join(F.broadcast(chosen), on=["query_id", "doc_id", "pair_key"])
        .dropDuplicates(["query_id", "doc_id"])
        .orderBy(*_ORDER, "place")
        .collect()
    )
    return Sample(
        [row["query_id"] for row in found],
        [row["doc_id"] for row in found],
        [row["query"] for row in found],
        [row["doc"] for row in found],
        np.array([np.nan if row["grade"] is None else row["grade"] for row in found], np.float64),
    )


def _drawn(candidates: DataFrame, each: int, seed: int) -> DataFrame:
    """Up to `each` candidates of every query, in an order drawn by hashes.

    Columns: query_id, doc_id, pair_key, grade, unanswered (no relevant candidate), drawn (the
    query's hash), place (the candidate's, from 1).
    """
    relevant = F.coalesce(F.col("grade") > 0, F.lit(False))
    by_hash = F.xxhash64("query_id", "doc_id", F.lit(seed))
    query = Window.partitionBy("query_id")
    kind = Window.partitionBy("query_id", relevant).orderBy(by_hash, "doc_id")
    ahead = relevant & (F.row_number().over(kind) <= each // 2)
    flagged = candidates.withColumns(
        {
            "ahead": ahead,
            "unanswered": ~F.max(relevant).over(query),
            "drawn": F.xxhash64("query_id", F.lit(seed)),
        }
    )
    place = F.row_number().over(query.orderBy(F.desc("ahead"), by_hash, "doc_id"))
    placed = flagged.withColumn("place", place).where(F.col("place") <= each).drop("ahead")
    return placed.orderBy(*_ORDER, "place")


def _numbered(names: list[str]) -> NDArray[np.int64]:
    places = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names], np.int64)
