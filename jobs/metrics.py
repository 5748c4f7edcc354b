"""How good a ranking is: DataFrame -> DataFrame, without collecting a pair.

trec_eval is the reference in every convention:

* A run's rank column is ignored. Scores are held in float32 and sorted in descending order, equal
  ones by doc_id in descending order of its bytes ("9" before "10").
* A document without a judgement is not relevant; `Judged@k` says how many have one.
* A query of the qrels that the run does not answer counts 0, and so does one without relevant
  documents. Both are counted and reported.

Shape of the computation: run and qrels are stacked and moved once, by query. Everything after that
(merging equal pairs, ranking, the measures) stays within a query, and so within a partition. After
ranking only judged documents go on, which are few, however long the run is.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

from pyspark.sql import Column, DataFrame, Row, Window
from pyspark.sql import functions as F

from jobs.errors import RefusedError
from jobs.measures import Measure

TieBreak = Literal["doc_id_desc", "doc_id_asc"]

#: Rows of a query that no measure can be computed from; each is reason to refuse the run.
FAULTS = {
    "n_repeated": "rows repeat a (query_id, doc_id) of the run; keep one row per pair",
    "n_unscored": "rows of the run have a null or NaN score; leave them out or score them",
    "n_conflicting": "pairs have two different grades in the qrels; keep one grade per pair",
}

# Means are sums of exact decimals: adding doubles gives other last digits in another order, and
# the order changes with the partitions. Values lie in 0..1, so 18 decimals lose nothing that a
# double holds, and 20 digits before the point are enough for any number of queries.
_EXACT = "decimal(38,18)"


class RunError(RefusedError, ValueError):
    """A run or qrels that no measure can be computed from."""


def per_query(
    run: DataFrame,
    qrels: DataFrame,
    measures: Sequence[Measure],
    *,
    tie_break: TieBreak = "doc_id_desc",
    run_only: bool = False,
    ceiling: bool = False,
) -> DataFrame:
    """Every measure of every query. Nothing is computed before the result is used.

    Args:
        run: query_id, doc_id, score (higher is better; compared in float32); other columns are
            ignored.
        qrels: query_id, doc_id, relevance (a grade; negative ones are judged and not relevant).
        measures: what to compute.
        tie_break: order of equal scores; `doc_id_desc` is trec_eval's.
        run_only: add a column `judged` (bool), and the queries that only the run has.
        ceiling: measure the best order of the same documents instead: by grade, descending.

    Returns:
        One row per query of the qrels: query_id; one double per measure, named `str(measure)`,
        null where the query has faults; n_retrieved (documents of the run), n_relevant (documents
        of the qrels with grade >= 1), answered (n_retrieved > 0); and the faults n_repeated,
        n_unscored and n_conflicting, which `summarise` refuses when they are not 0.
    """
    queries = _gather(_ranked(_stacked(run, qrels), tie_break))
    if ceiling:
        queries = queries.withColumn("hits", _best_order())
    sound = F.lit(True)
    for fault in FAULTS:
        sound = sound & (F.col(fault) == 0)
    columns = [
        F.when(sound & F.col("judged"), _value(measure)).alias(str(measure))
        for measure in dict.fromkeys(measures)
    ]
    table = queries if run_only else queries.where(F.col("judged"))
    return table.select(
        "query_id",
        *columns,
        "n_retrieved",
        F.size(F.filter("grades", lambda grade: grade >= 1)).alias("n_relevant"),
        (F.col("n_retrieved") > 0).alias("answered"),
        *FAULTS,
        *(["judged"] if run_only else []),
    )


def summarise(table: DataFrame) -> dict[str, float | int]:
    """Means over all queries of the qrels, and what to know about them. Runs the plan.

    Args:
        table: what `per_query` returns.

    Returns:
        The mean of every measure under its name, then counts: `queries` (of the qrels),
        `queries_unanswered` (not in the run; they count 0), `queries_without_relevant` (they count
        0 too), and, if the table was made with `run_only`, `queries_only_in_run` (not counted).

    Raises:
        RunError: repeated pairs, missing scores, conflicting grades, or no query at all.
    """
    names = [field.name for field in table.schema if field.dataType.typeName() == "double"]
    row = table.agg(*_totals(table, names)).first()
    assert row is not None  # an aggregate without groups has one row, also over no rows
    _refuse_faults(row)
    queries = int(row["queries"])
    if not queries:
        raise RunError("the qrels hold no query; give qrels with at least one judged document")
    # Quotient of exact decimals, turned into a double once.
    summary: dict[str, float | int] = {
        name: float((row[name] or Decimal(0)) / queries) for name in names
    }
    counts = [name for name in row.asDict() if name.startswith("queries")]
    return summary | {name: int(row[name]) for name in counts}


def compare(
    ranked: DataFrame,
    qrels: DataFrame,
    measures: Sequence[Measure],
    *,
    tie_break: TieBreak = "doc_id_desc",
) -> dict[str, Any]:
    """First stage and reranked order of the same candidates, side by side.

    Args:
        ranked: query_id, doc_id, score, retrieval_score, retrieval_rank; the last two may hold
            nulls. It should hold all candidates: a table cut to its top k has lost what the first
            stage ranked higher.
        qrels: query_id, doc_id, relevance.
        measures: what to compute.
        tie_break: order of equal scores, in both orders.

    Returns:
        `reranked`, `first_stage`, `delta` (reranked minus first stage) and `ceiling`, each a value
        per measure name; `first_stage_order`, the column it was read from; and the counts of
        `summarise`. The ceiling is what the best order of these candidates would reach, and so
        what relevant documents that were never retrieved cost both; Judged has none.
        `first_stage`, `delta` and `first_stage_order` are None where the table holds neither
        retrieval scores nor ranks.

    Raises:
        RunError: as `summarise`, or retrieval scores and ranks that are both incomplete.
    """
    measures = tuple(dict.fromkeys(measures))

    def summary(score: Column, **options: Any) -> dict[str, float | int]:
        run = ranked.select("query_id", "doc_id", score.alias("score"))
        return summarise(per_query(run, qrels, tie_break=tie_break, **options))

    order = first_stage_order(ranked)
    after = summary(F.col("score"), measures=measures, run_only=True)
    names = [str(measure) for measure in measures]
    result: dict[str, Any] = {"first_stage": None, "delta": None, "first_stage_order": order}
    if order is not None:
        column = F.col(order) if order == "retrieval_score" else -F.col(order).cast("double")
        before = summary(column, measures=measures)
        result["first_stage"] = {name: before[name] for name in names}
        result["delta"] = {name: after[name] - before[name] for name in names}
    bounded = [measure for measure in measures if measure.name != "Judged"]
    best = summary(F.col("score"), measures=bounded, ceiling=True)
    result["reranked"] = {name: after[name] for name in names}
    result["ceiling"] = {str(measure): best[str(measure)] for measure in bounded}
    return result | {name: count for name, count in after.items() if name not in names}


def first_stage_order(ranked: DataFrame) -> str | None:
    """The column that gives the first stage's order: the scores if all are there, else the ranks.

    Raises:
        RunError: some rows have one, but neither column is complete.
    """
    columns = ("retrieval_score", "retrieval_rank")
    row = ranked.agg(
        F.count(F.lit(1)).alias("rows"), *[F.count(column).alias(column) for column in columns]
    ).first()
    assert row is not None  # an aggregate without groups has one row
    for column in columns:
        if row[column] and row[column] == row["rows"]:
            return column
    if not any(row[column] for column in columns):
        return None
    raise RunError(
        f"the first stage has no order: of {row['rows']} rows {row['retrieval_score']} have a "
        f"retrieval_score and {row['retrieval_rank']} a retrieval_rank; fill one of them, or map "
        "neither"
    )


def _stacked(run: DataFrame, qrels: DataFrame) -> DataFrame:
    """Run and qrels as one table with a row per (query_id, doc_id), all of a query together."""
    ids = [F.col(name).cast("string").alias(name) for name in ("query_id", "doc_id")]
    # float, because trec_eval compares in float32; + 0.0 makes -0.0 equal to 0.0 for every sort.
    score = (F.col("score").cast("float") + F.lit(0.0).cast("float")).alias("score")
    nothing = F.lit(None)
    retrieved = run.select(
        *ids, score, nothing.cast("double").alias("relevance"), F.lit(1).alias("retrieved")
    )
    judged = qrels.select(
        *ids,
        nothing.cast("float").alias("score"),
        F.col("relevance").cast("double").alias("relevance"),
        F.lit(0).alias("retrieved"),
    )
    # The one shuffle. A union merged by groupBy instead of a join: it finds repeated pairs in
    # passing, and stays where the rows are, while a join on both ids would move them again.
    return (
        retrieved.unionByName(judged)
        .repartition("query_id")
        .groupBy("query_id", "doc_id")
        .agg(
            F.max("score").alias("score"),
            F.max("relevance").alias("relevance"),
            F.min("relevance").alias("least_relevance"),
            F.sum("retrieved").alias("copies"),
            F.sum(F.when(F.isnan("score"), 1)).alias("nans"),
        )
    )


def _ranked(pairs: DataFrame, tie_break: TieBreak) -> DataFrame:
    """Judged or faulty pairs, and the last retrieved one; rank is null where not retrieved."""
    doc_id = F.col("doc_id")
    tie = doc_id.desc() if tie_break == "doc_id_desc" else doc_id.asc()
    order = Window.partitionBy("query_id").orderBy(
        F.col("copies").desc_nulls_last(), F.col("score").desc_nulls_last(), tie
    )
    return pairs
