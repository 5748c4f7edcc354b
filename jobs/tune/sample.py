"""Draw the pairs that settings are measured on: a few candidates each of some queries."""

import math
from typing import Final

import pandas as pd
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.config import TuneConfig
from jobs.input.layouts import InputTable

_PAIRS: Final = {False: 320, True: 4096}  # True: on a GPU
_ORDER: Final = ("unanswered", "query_hash", "query_id", "position")
_LONGEST: Final = 200_000  # characters of a text; more than any max_length keeps


def draw_sample(
    pairs: InputTable, qrels: DataFrame | None, config: TuneConfig, *, on_gpu: bool
) -> pd.DataFrame:
    """Draw queries and their candidates by hashes of their ids, so the same ones every time.

    Up to half of a query's candidates are relevant ones, as without them there is no order to
    judge. Queries without a relevant candidate are drawn last.

    Returns:
        query_id, doc_id, query, doc, grade (NaN where a pair is not judged), query by query.
    """
    rows = pairs.rows.where(F.isnotnull("pair_key"))
    candidates = rows.groupBy("query_id", "doc_id").agg(F.min("pair_key").alias("pair_key"))
    if qrels is not None:
        candidates = candidates.join(qrels, on=["query_id", "doc_id"], how="left")
    grade = F.lit(None) if qrels is None else F.col("relevance")
    number = candidates.select(F.count_distinct("query_id")).collect()[0][0]
    wanted = config.pairs or _PAIRS[on_gpu]
    each = max(config.candidates, math.ceil(wanted / max(1, number)))
    by_hash = F.xxhash64("query_id", "doc_id", F.lit(config.seed))
    relevant = F.coalesce(F.col("grade") > 0, F.lit(False))
    query = Window.partitionBy("query_id")
    alike = Window.partitionBy("query_id", relevant).orderBy(by_hash, "doc_id")
    ahead = relevant & (F.row_number().over(alike) <= each // 2)
    position = F.row_number().over(query.orderBy(F.desc("ahead"), by_hash, "doc_id"))
    drawn = (
        candidates.withColumn("grade", grade.cast("double"))
        .withColumn("ahead", ahead)
        .withColumn("unanswered", ~F.max(relevant).over(query))
        .withColumn("query_hash", F.xxhash64("query_id", F.lit(config.seed)))
        .withColumn("position", position)
        .where(F.col("position") <= each)
        .orderBy(*_ORDER)
        .limit(max(wanted, each))
    )
    # Only the chosen ids meet the texts, which are most of the table.
    texts = [F.substring(side, 1, _LONGEST).alias(side) for side in ("query", "doc")]
    return (
        rows.select("query_id", "doc_id", "pair_key", *texts)
        .join(F.broadcast(drawn), on=["query_id", "doc_id", "pair_key"], how="inner")
        .dropDuplicates(["query_id", "doc_id"])
        .orderBy(*_ORDER)
        .select("query_id", "doc_id", "query", "doc", "grade")
        .toPandas()
    )


def first_queries(sample: pd.DataFrame, pairs: int) -> pd.DataFrame:
    """Return whole queries from the start that have at most `pairs` pairs; at least one query."""
    ends = sample.groupby("query_id", sort=False).size().cumsum()
    return sample.head(max([ends.iloc[0], *ends[ends <= pairs]]))
