"""How good a ranking is: DataFrame -> DataFrame, without collecting a pair.

trec_eval is the reference in every convention:

* A run's rank column is ignored. Scores are held in float32 and sorted in descending order, equal
  ones by doc_id in descending order of its bytes ("9" before "10").
* A document without a judgement is not relevant; `Judged@k` says how many have one.
* A query of the qrels that the run does not answer counts 0, and so does one without relevant
  documents. Both are counted and reported.

Shape of the computation: run and qrels are stacked and moved once, by query. All that follows
(merging equal pairs, ranking, the measures) stays within a query, and so within a partition. After
ranking only judged documents go on, which are few, however long the run is.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from pyspark.sql import DataFrame, Row, Window
from pyspark.sql import functions as F

from jobs.evaluation.formulas import best_order, formula, relevant_in_qrels
from jobs.evaluation.measures import Measure
from jobs.runtime.errors import RefusedError

TieBreak = Literal["doc_id_desc", "doc_id_asc"]

#: Columns of `per_query` that count what no measure can be computed from, and the remedies.
FAULTS = {
    "n_repeated": "rows of the run repeat a (query_id, doc_id); keep one row per pair",
    "n_unscored": "rows of the run have a null or NaN score; score them or leave them out",
    "n_conflicting": "pairs have two different grades in the qrels; keep one grade per pair",
}

#: Prefix of the columns that hold the ceiling.
CEILING = "ceiling "

# Means are quotients of exact sums. Doubles added in another order end in other digits, and the
# order depends on the partitions; decimals do not care. Values lie in 0..1, so 18 decimals are
# finer than what a double holds, and a sum (30 digits) has room for 10^12 queries.
_EXACT = "decimal(20,18)"


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
    """Every measure of every query. A plan; nothing is computed before the result is used.

    Args:
        run: query_id, doc_id, score (higher is better, compared in float32); the rest is ignored.
        qrels: query_id, doc_id, relevance (a grade; negative ones are judged and not relevant).
        measures: what to compute.
        tie_break: order of equal scores; `doc_id_desc` is trec_eval's.
        run_only: add a column `judged` (bool), and the queries that only the run has.
        ceiling: add a double per measure, `ceiling NAME`: its value if the same documents came in
            the best order, by grade descending. Judged@k has none: it does not reward an order.

    Returns:
        One row per query of the qrels: query_id; one double per measure, named `str(measure)`,
        null where the query has faults; n_retrieved (documents of the run), n_relevant (documents
        of the qrels with a grade of at least 1), answered (n_retrieved > 0); and the faults
        n_repeated, n_unscored and n_conflicting, which `summarise` refuses unless they are 0.
    """
    queries = _gathered(_ranked(_merged(run, qrels), tie_break))
    hits = F.col("hits")
    values = {str(measure): formula(measure, hits) for measure in measures}
    if ceiling:
        queries = queries.withColumn("best_hits", best_order(hits))
        best = F.col("best_hits")
        values |= {f"{CEILING}{m}": formula(m, best) for m in measures if m.name != "Judged"}
    sound = F.col("judged")
    for fault in FAULTS:
        sound = sound & (F.col(fault) == 0)
    return queries.where(F.lit(run_only) | F.col("judged")).select(
        "query_id",
        *[F.when(sound, value).alias(name) for name, value in values.items()],
        "n_retrieved",
        relevant_in_qrels(1).alias("n_relevant"),
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
        0 too), and, if the table was made with `run_only`, `queries_only_in_run` (ignored).

    Raises:
        RunError: repeated pairs, missing scores, conflicting grades, or no query at all.
    """
    names = [field.name for field in table.schema if field.dataType.typeName() == "double"]
    judged = F.col("judged") if "judged" in table.columns else F.lit(True)
    counts = {
        "queries": judged,
        "queries_unanswered": judged & ~F.col("answered"),
        "queries_without_relevant": judged & (F.col("n_relevant") == 0),
    }
    if "judged" in table.columns:
        counts["queries_only_in_run"] = ~judged
    row = table.agg(
        *[F.sum(F.col(f"`{name}`").cast(_EXACT)).alias(name) for name in names],
        *[F.count_if(condition).alias(name) for name, condition in counts.items()],
        *[F.sum(fault).alias(fault) for fault in FAULTS],
        *[F.min(F.when(F.col(f) > 0, F.col("query_id"))).alias(f"{f}_in") for f in FAULTS],
    ).first()
    assert row is not None  # an aggregate without groups has one row, even over no rows
    _refuse_faults(row)
    means = {name: float((row[name] or Decimal(0)) / row["queries"]) for name in names}
    return means | {name: int(row[name]) for name in counts}


def first_stage_order(ranked: DataFrame) -> str | None:
    """The column that gives the first stage's order: the scores if all are there, else the ranks.

    Raises:
        RunError: some rows have a score or a rank, but neither column is complete.
    """
    columns = ("retrieval_score", "retrieval_rank")
    counts = [F.count(column).alias(column) for column in columns]
    row = ranked.agg(F.count(F.lit(1)).alias("rows"), *counts).first()
    assert row is not None  # an aggregate without groups has one row
    if not any(row[column] for column in columns):
        return None
    for column in columns:
        if row[column] == row["rows"]:
            return column
    raise RunError(
        f"the first stage has no order: of {row['rows']} rows {row['retrieval_score']} have a "
        f"retrieval_score and {row['retrieval_rank']} a retrieval_rank; fill either column, or "
        "leave both out"
    )


def _merged(run: DataFrame, qrels: DataFrame) -> DataFrame:
    """One row per (query_id, doc_id) of run or qrels; score is null where not retrieved.

    The one shuffle. A union merged by groupBy and not a join: it finds repeated pairs in passing,
    and stays where the rows are, while a join on both ids would move them again.
    """
    ids = [F.col(name).cast("string").alias(name) for name in ("query_id", "doc_id")]
    score, relevance = F.col("score").cast("float"), F.col("relevance").cast("double")
    unscored = score.isNull() | F.isnan(score)
    retrieved = run.select(
        *ids,
        # Faulty rows stay in the table, to be counted; adding 0.0 turns -0.0 into 0.0.
        F.when(unscored, float("-inf")).otherwise(score + 0.0).cast("float").alias("score"),
        F.lit(None).cast("double").alias("relevance"),
        unscored.cast("int").alias("unscored"),
    )
    judged = qrels.select(
        *ids,
        F.lit(None).cast("float").alias("score"),
        relevance.alias("relevance"),
        F.lit(0).alias("unscored"),
    )
    return (
        retrieved.unionByName(judged)
        .repartition("query_id")
        .groupBy("query_id", "doc_id")
        .agg(
            F.max("score").alias("score"),
            F.max("relevance").alias("relevance"),
            F.greatest(F.count("score") - 1, F.lit(0)).alias("repeated"),
            F.sum("unscored").alias("unscored"),
            (F.min("relevance") < F.max("relevance")).cast("int").alias("conflicting"),
        )
    )


def _ranked(pairs: DataFrame, tie_break: TieBreak) -> DataFrame:
    """Add `rank` (from 1, null where not retrieved); keep what `_gathered` needs."""
    doc_id = F.col("doc_id")
    tie = doc_id.desc() if tie_break == "doc_id_desc" else doc_id.asc()
    order = Window.partitionBy("query_id").orderBy(F.col("score").desc_nulls_last(), tie)
    retrieved = F.col("score").isNotNull()
    ranked = pairs.select(
        "*",
        F.when(retrieved, F.row_number().over(order)).alias("rank"),
        # The last retrieved document carries the length of the ranking.
        (retrieved & F.lead("score").over(order).isNull()).alias("last"),
    )
    faulty = (F.col("repeated") > 0) | (F.col("unscored") > 0)
    return ranked.where(F.col("relevance").isNotNull() | F.col("last") | faulty)


def _gathered(pairs: DataFrame) -> DataFrame:
    """One row per query: hits (judged and retrieved, by rank), grades (above 0, descending).

    Both are short, and sorted so that sums over them run in one order wherever rows came from.
    """
    rank, relevance = F.col("rank"), F.col("relevance")
    hit = F.when(rank.isNotNull() & relevance.isNotNull(), F.struct("rank", "relevance"))
    return pairs.groupBy("query_id").agg(
        F.sort_array(F.collect_list(hit)).alias("hits"),
        F.sort_array(F.collect_list(F.when(relevance > 0, relevance)), asc=False).alias("grades"),
        F.coalesce(F.max("rank"), F.lit(0)).alias("n_retrieved"),
        (F.count("relevance") > 0).alias("judged"),
        F.sum("repeated").alias("n_repeated"),
        F.sum("unscored").alias("n_unscored"),
        F.coalesce(F.sum("conflicting"), F.lit(0)).alias("n_conflicting"),
    )


def _refuse_faults(row: Row) -> None:
    findings = [
        f"{row[fault]} {remedy} (for example in query {row[f'{fault}_in']!r})"
        for fault, remedy in FAULTS.items()
        if row[fault]
    ]
    if findings:
        raise RunError(findings)
    if not row["queries"]:
        raise RunError("the qrels hold no query; give qrels with at least one judged document")
