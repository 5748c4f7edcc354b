"""One table of candidates, measured: everything about it that needs its rows.

What comes out is small: tables in a workspace, values per query, counts. `jobs.evaluation.document`
makes the result of them, and never sees a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.evaluation import rank_changes as moves
from jobs.evaluation.calibration import with_labels
from jobs.evaluation.distributions import Distribution, distributions
from jobs.evaluation.measures import Measure
from jobs.evaluation.metrics import (
    CEILING,
    FAULTS,
    TieBreak,
    first_stage_order,
    per_query,
    summarise,
)
from jobs.input.columns import quoted

AFTER = "reranked "
BEFORE = "first_stage "
_COUNTS = ("n_retrieved", "n_relevant", "answered", "judged")
#: Columns of the table per query, which no slice can be named like.
RESERVED = frozenset(
    {"query_id", "top1_changed", "kendall_tau", "rbo", "n_truncated", "n_truncated_top"}
    | {*_COUNTS, *FAULTS}
)
_LENGTH_BINS = 30
_AGREEMENT = 1e-4  # to which tau and overlap are rounded, to be counted

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
    sides = [AFTER]
    if order is not None:
        sides.append(BEFORE)
        first = per_query(_first_stage(rows, order), qrels, measures, tie_break=tie_break)
        values = [F.col(f"`{n}`").alias(BEFORE + n) for n in names]
        # Of the faults the first stage can only have scores of its own that are missing.
        unscored = F.col("n_unscored").alias("_unscored")
        table = table.join(first.select("query_id", *values, unscored), on="query_id", how="left")
        worst = F.greatest("n_unscored", F.coalesce("_unscored", F.lit(0)))
        table = table.withColumn("n_unscored", worst).drop("_unscored")
    table = table.join(moves.query_moves(rows), on="query_id", how="left")
    if slices:
        table = table.join(_slices(rows, slices), on="query_id", how="left")
    table = stage("per_query", table)
    kept = [quoted(f"{side}{n}") for n in names for side in sides]
    counts = summarise(table.select("query_id", *kept, *_ceilings(table), *_COUNTS, *FAULTS))
    values_frame = (
        table.where("judged")
        .select("query_id", *kept, *map(quoted, slices))
        .orderBy("query_id")
        .toPandas()
    )
    found = Study(
        name=name,
        order=order,
        per_query=table.drop(*FAULTS),
        values=values_frame,
        first_stage=_means(counts, BEFORE, names) if order is not None else None,
        reranked=_means(counts, AFTER, names),
        ceiling={n: float(counts[CEILING + n]) for n in names if CEILING + n in counts},
        counts={key: int(value) for key, value in counts.items() if key.startswith("queries")},
    )
    return found, rows


@dataclass(frozen=True)
class Counted:
    """What is counted over the pairs of a table.

    Attributes:
        changes: places that documents moved.
        origins: former ranks of those now in front.
        lengths: tokens of a pair, as the model was given it.
        truncated: pairs that were cut.
    """

    changes: Distribution
    origins: Distribution
    lengths: Distribution
    truncated: int


def count_pairs(rows: DataFrame) -> Counted:
    """Count over the rows that `study` returned, in one pass."""
    values = {
        "changes": moves.rank_change(), "origins": moves.origin(), "lengths": F.col("n_tokens"),
    }  # fmt: skip
    found, sums = distributions(rows, values, {"truncated": F.col("truncated").cast("int")})
    return Counted(
        changes=found["changes"],
        origins=found["origins"],
        lengths=found["lengths"],
        truncated=sums["truncated"],
    )


def moved(found: Study, pairs: Counted) -> dict[str, Any] | None:
    """What reranking moved, over all queries of the table; None without a first stage."""
    if not pairs.changes.size:
        return None
    agreement, sums = distributions(
        found.per_query,
        {"kendall_tau": F.col("kendall_tau"), "rbo": F.col("rbo")},
        {
            "compared": F.isnotnull("top1_changed").cast("int"),
            "changed": F.col("top1_changed").cast("int"),
            "pairs": F.col("n_truncated"),
            "queries": (F.col("n_truncated") > 0).cast("int"),
            "queries_in_top": (F.col("n_truncated_top") > 0).cast("int"),
        },
        step=_AGREEMENT,
    )
    compared = sums.pop("compared")
    return {
        "queries_compared": compared,
        "top1_change_rate": sums.pop("changed") / compared,
        **moves.summary(pairs.changes),
        **{key: each.summary(0.05, 0.5, 0.95) for key, each in agreement.items() if each.size},
        "flow": moves.flow(pairs.origins),
        "truncation": {**sums, "k": moves.TOP},
    }


def lengths(pairs: Counted, max_length: int | None) -> dict[str, Any] | None:
    """Tokens of the pairs; None where the table does not say."""
    found = pairs.lengths
    if not found.size:
        return None
    edges, counts = found.histogram(_LENGTH_BINS)
    return {
        "edges": edges,
        "counts": counts,
        **found.summary(0.5, 0.95, 0.99),
        "max": float(found.values[-1]),
        "max_length": max_length,
        "truncated": pairs.truncated,
    }


def _means(counts: Mapping[str, float], side: str, names: Sequence[str]) -> dict[str, float]:
    return {name: float(counts[side + name]) for name in names}


def _ceilings(table: DataFrame) -> list[Column]:
    return [F.col(f"`{name}`") for name in table.columns if name.startswith(CEILING)]


def _first_stage(rows: DataFrame, order: str) -> DataFrame:
    score = F.col(order) if order == "retrieval_score" else -F.col(order).cast("double")
    return rows.select("query_id", "doc_id", score.alias("score"))


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
