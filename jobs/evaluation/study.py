"""One table of candidates, measured: everything about it that needs its rows.

What comes out is small: tables in a workspace, values per query, counts. `jobs.evaluation.document`
makes the result of them, and never sees a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.evaluation import moves
from jobs.evaluation.calibration import with_labels
from jobs.evaluation.distributions import Distribution, distribution
from jobs.evaluation.measures import Measure
from jobs.evaluation.metrics import (
    CEILING,
    FAULTS,
    TieBreak,
    first_stage_order,
    per_query,
    summarise,
)
from jobs.sources import quoted

AFTER = "reranked "
BEFORE = "first_stage "
_LENGTH_BINS = 30
_COUNTS = ("n_retrieved", "n_relevant", "answered", "judged")

#: Writes a table under a name and reads it back.
Stage = Callable[[str, DataFrame], DataFrame]


@dataclass(frozen=True)
class Study:
    """What is known of one table.

    Attributes:
        name: of the table.
        order: column that gave the first stage's order, None without a first stage.
        per_query: the table per query, as staged.
        values: its judged queries by id, with a column `reranked M` and, where there is a first
            stage, `first_stage M` for every measure M, and the slices.
        first_stage: mean of every measure; None without a first stage.
        reranked: mean of every measure.
        ceiling: what the best order of these candidates would reach.
        counts: of queries, see `metrics.summarise`.
    """

    name: str
    order: str | None
    per_query: DataFrame
    values: pd.DataFrame
    first_stage: dict[str, float] | None
    reranked: dict[str, float]
    ceiling: dict[str, float]
    counts: dict[str, int]


def study(
    name: str,
    candidates: DataFrame,
    qrels: DataFrame,
    measures: Sequence[Measure],
    stage: Stage,
    *,
    tie_break: TieBreak = "doc_id_desc",
    slices: Sequence[str] = (),
) -> tuple[Study, DataFrame]:
    """Measure both orders of a table.

    Args:
        name: of the table.
        candidates: query_id, doc_id, score, retrieval_score, retrieval_rank, n_tokens, truncated
            and the slices. All candidates: of a table cut to its top k, the first stage is only
            known as far as it survived.
        qrels: query_id, doc_id, relevance.
        measures: what to compute.
        stage: writes what would otherwise be computed several times.
        tie_break: order of equal scores, in both stages.
        slices: columns that have one value per query, or numbers whose mean is taken.

    Returns:
        The study; and the candidates with `after`, `before` and `relevance`, as staged.

    Raises:
        RunError: repeated pairs, missing scores, conflicting grades, no query at all, or retrieval
            scores and ranks that are both incomplete.
    """
    order = first_stage_order(candidates)
    labelled = with_labels(candidates, qrels)
    rows = stage("candidates", moves.placed(labelled, order, tie_break=tie_break))
    names = [str(measure) for measure in measures]
    table = per_query(rows, qrels, measures, tie_break=tie_break, run_only=True, ceiling=True)
    table = table.select(
        "query_id", *(F.col(f"`{n}`").alias(AFTER + n) for n in names), *_ceilings(table), *_COUNTS,
        *FAULTS,
    )  # fmt: skip
    if order is not None:
        first = per_query(_first_stage(rows, order), qrels, measures, tie_break=tie_break)
        faults = [F.col(fault).alias(BEFORE + fault) for fault in FAULTS]
        values = [F.col(f"`{n}`").alias(BEFORE + n) for n in names]
        table = table.join(first.select("query_id", *values, *faults), on="query_id", how="left")
    table = table.join(moves.query_moves(rows), on="query_id", how="left")
    if slices:
        table = table.join(_slices(rows, slices), on="query_id", how="left")
    table = stage("per_query", table)
    counts = summarise(_stage_of(table, AFTER, names))
    before = None
    if order is not None:
        before = summarise(_stage_of(table.where("judged"), BEFORE, names))
    kept = [f"{side}{n}" for n in names for side in (AFTER, BEFORE) if before or side == AFTER]
    values_frame = (
        table.where("judged")
        .select("query_id", *map(quoted, kept), *map(quoted, slices))
        .orderBy("query_id")
        .toPandas()
    )
    found = Study(
        name=name,
        order=order,
        per_query=table.drop(*FAULTS, *(BEFORE + fault for fault in FAULTS)),
        values=values_frame,
        first_stage=before and {n: float(before[n]) for n in names},
        reranked={n: float(counts[n]) for n in names},
        ceiling={n: float(counts[CEILING + n]) for n in names if CEILING + n in counts},
        counts={key: int(value) for key, value in counts.items() if key.startswith("queries")},
    )
    return found, rows


def moved(found: Study, rows: DataFrame) -> dict[str, Any] | None:
    """What reranking moved, over all queries of the table; None without a first stage."""
    if found.order is None:
        return None
    changes = moves.rank_changes(rows)
    if not changes.size:
        return None
    agreement = {key: distribution(found.per_query, F.col(key), step=1e-4) for key in _AGREEMENT}
    row = found.per_query.agg(
        F.count("top1_changed").alias("compared"),
        F.count_if("top1_changed").alias("changed"),
        F.sum("n_truncated").alias("pairs"),
        F.count_if(F.col("n_truncated") > 0).alias("queries"),
        F.count_if(F.col("n_truncated_top") > 0).alias("in_top"),
    ).collect()[0]
    return {
        "queries_compared": row["compared"],
        "top1_change_rate": row["changed"] / row["compared"] if row["compared"] else None,
        **moves.summary(changes),
        **{
            key: agreement[key].summary(0.05, 0.5, 0.95)
            for key in _AGREEMENT
            if agreement[key].size
        },
        "flow": moves.flow(rows),
        "truncation": {
            "pairs": row["pairs"] or 0,
            "queries": row["queries"],
            "queries_in_top": row["in_top"],
            "k": moves.TOP,
        },
    }


_AGREEMENT = ("kendall_tau", "rbo")


def lengths(rows: DataFrame, max_length: int | None) -> dict[str, Any] | None:
    """Tokens of the pairs, as the model was given them; None where the table does not say."""
    found: Distribution = distribution(rows, F.col("n_tokens"))
    if not found.size:
        return None
    edges, counts = found.histogram(_LENGTH_BINS)
    return {
        "edges": edges,
        "counts": counts,
        **found.summary(0.5, 0.95, 0.99),
        "max": float(found.values[-1]),
        "max_length": max_length,
        "truncated": rows.where("truncated").count(),
    }


def _ceilings(table: DataFrame) -> list[Column]:
    return [F.col(f"`{name}`") for name in table.columns if name.startswith(CEILING)]


def _first_stage(rows: DataFrame, order: str) -> DataFrame:
    score = F.col(order) if order == "retrieval_score" else -F.col(order).cast("double")
    return rows.select("query_id", "doc_id", score.alias("score"))


def _stage_of(table: DataFrame, side: str, names: Sequence[str]) -> DataFrame:
    """The columns of one side under the names that `summarise` knows."""
    faults = FAULTS if side == AFTER else {BEFORE + fault: fault for fault in FAULTS}
    renamed = [F.col(have).alias(want) for have, want in zip(faults, FAULTS, strict=True)]
    ceilings = _ceilings(table) if side == AFTER else []
    means = [F.col(f"`{side}{name}`").alias(name) for name in names]
    return table.select("query_id", *means, *ceilings, *_COUNTS, *renamed)


def _slices(rows: DataFrame, columns: Sequence[str]) -> DataFrame:
    """One value per query: the mean of a number, `mixed` where other values differ."""
    numeric = {f.name for f in rows.schema if f.dataType.typeName() in _NUMBERS}
    found = []
    for name in columns:
        column = quoted(name)
        if name in numeric:
            # Whole numbers or few digits: a mean of decimals is the same in any order.
            value = F.avg(column.cast("decimal(28,8)")).cast("double")
        else:
            text = column.cast("string")
            differ = F.min(text) != F.max(text)
            value = F.when(differ, "mixed").otherwise(F.coalesce(F.min(text), F.lit("none")))
        found.append(value.alias(name))
    return rows.groupBy("query_id").agg(*found)


_NUMBERS = ("byte", "short", "integer", "long", "float", "double", "decimal", "tinyint", "smallint",
            "int", "bigint")  # fmt: skip
