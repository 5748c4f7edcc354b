"""One ranked table, measured: everything that needs its rows.

What comes out is small: staged tables, values per list, counts. `jobs.evaluation.document` makes
the result of them, and never sees a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import pandas as pd
from pyspark.sql import Column, DataFrame, Row, Window
from pyspark.sql import functions as F

from jobs.evaluation.measures import AFTER, BEFORE, CEILING, JUDGED, measure_bucket
from jobs.evaluation.ranked import Table
from jobs.input.columns import quoted
from jobs.runtime.errors import RefusedError

TieBreak = Literal["doc_id_desc", "doc_id_asc"]

_FACTS: Final = {
    "n_retrieved": "int", "n_relevant": "int", "n_judged": "int", "answered": "boolean",
    "judged": "boolean", "n_repeated": "int", "n_tied": "int", "top1_changed": "boolean",
    "kendall_tau": "double", "rbo": "double", "n_truncated": "int", "n_truncated_top": "int",
}  # fmt: skip
#: Columns of the table per query, which no slice can be named like.
RESERVED: Final = frozenset({"query_id", *_FACTS})
# Rows that one call of the measuring function holds in memory: about 10 MB. Smaller buckets would
# spend more time on calls than on measures, larger ones leave cores idle.
_BUCKET: Final = 20_000
_NUMBERS: Final = frozenset({"byte", "short", "integer", "long", "float", "double", "decimal"})

#: Writes a table under a name and reads it back.
Stage = Callable[[str, DataFrame], DataFrame]


class RunError(RefusedError, ValueError):
    """A run or qrels that no measure can be computed from."""


@dataclass(frozen=True)
class RunEvaluation:
    """What is known of one table.

    Attributes:
        name: of the table.
        keys: columns that identify a list, query_id last.
        first_stage_order: column that gave the first stage's order, None without a first stage.
        partial: why there is no first-stage order although some rows have one, else None.
        rows: the candidates with `after`, `before` and `relevance`, as staged.
        per_query: the table per list, as staged.
        values: its judged lists in order of `keys`, with `keys`, the facts of `measure_bucket`,
            columns `reranked M`, `first_stage M`, `ceiling M` for every measure M, and the slices.
    """

    name: str
    keys: tuple[str, ...]
    first_stage_order: str | None
    partial: str | None
    rows: DataFrame
    per_query: DataFrame
    values: pd.DataFrame

    def means(self, side: str, names: Sequence[str]) -> dict[str, float] | None:
        """Mean of every measure of one side over all judged lists; None without values."""
        return means(self.values, side, names)

    @property
    def judged_before(self) -> float | None:
        """Mean `JUDGED` of the first stage over lists with candidates; None without one."""
        if self.first_stage_order is None:
            return None
        values = self.values[self.values["answered"]]
        return float(values[BEFORE + JUDGED].mean()) if len(values) else None

    def counts(self) -> dict[str, int]:
        """Lists of the qrels, and how many of them have no candidate, and so on."""
        values = self.values
        return {
            "queries": len(values),
            "queries_judged": int((values["n_judged"] > 0).sum()),
            "queries_unanswered": int((~values["answered"]).sum()),
            "queries_without_relevant": int((values["n_relevant"] == 0).sum()),
            "queries_only_in_run": self.per_query.where(~F.col("judged")).count(),
        }


def means(values: pd.DataFrame, side: str, names: Sequence[str]) -> dict[str, float] | None:
    """Mean of every measure; sums are exact, so no digit depends on the order of the rows."""
    if side == BEFORE and f"{BEFORE}{names[0]}" not in values.columns:
        return None
    kept = {name: values[side + name] for name in names if side + name in values.columns}
    return {name: math.fsum(column) / len(column) for name, column in kept.items()}


def evaluate_run(
    table: Table,
    qrels: DataFrame,
    measures: Sequence[str],
    stage: Stage,
    *,
    tie_break: TieBreak = "doc_id_desc",
    slices: Sequence[str] = (),
) -> RunEvaluation:
    """Measure both orders of a table, trec_eval's way.

    A run's rank column is ignored: scores are held in float32 and sorted in descending order, equal
    ones by doc_id in descending order of its bytes ("9" before "10"). A document without a
    judgement is not relevant. A query of the qrels without candidates counts 0, and so does one
    without relevant documents.

    Args:
        table: all candidates: of a table cut to its top k, the first stage is only known as far as
            it survived.
        qrels: query_id, doc_id, relevance; may be empty.
        measures: what to compute; `JUDGED` is computed anyway.
        stage: writes what would otherwise be computed several times.
        tie_break: order of equal scores, in both stages.
        slices: columns that have one value per list, or numbers whose mean is taken.

    Raises:
        RunError: missing scores, repeated pairs in a table of somebody else's, or retrieval scores
            and ranks that are both incomplete in one.
    """
    keys = (*table.group, "query_id")
    names = tuple(dict.fromkeys([*measures, JUDGED]))
    order, partial_order, count = _check(table)
    groups = {name: F.coalesce(quoted(name).cast("string"), F.lit("none")) for name in table.group}
    labelled = _with_labels(table.candidates.withColumns(groups), qrels)
    rows = stage("candidates", _with_ranks(labelled, order, keys, tie_break))
    per_query = _measured(rows, qrels, keys, names, count + qrels.count())
    if order is None:
        per_query = per_query.drop(*(BEFORE + name for name in names))
    if slices:
        per_query = per_query.join(_slices(rows, keys, slices), on=list(keys), how="left")
    per_query = stage("per_query", per_query)
    if not table.own:
        _refuse_repeated(per_query)
    values = per_query.where("judged").toPandas().sort_values(list(keys), ignore_index=True)
    per_query = per_query.drop("n_repeated")
    return RunEvaluation(table.name, keys, order, partial_order, rows, per_query, values)


def _check(table: Table) -> tuple[str | None, str | None, int]:
    """Column of the first stage's order, why there is none although it is there in part, rows."""
    score = F.col("score")
    unscored = score.isNull() | F.isnan(score)
    known = {"retrieval_score": F.nanvl(F.col("retrieval_score").cast("double"), F.lit(None)),
             "retrieval_rank": F.col("retrieval_rank")}  # fmt: skip
    row = table.candidates.agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_if(unscored).alias("unscored"),
        F.min(F.when(unscored, F.col("query_id"))).alias("query_id"),
        *(F.count(column).alias(name) for name, column in known.items()),
    ).first()
    assert row is not None  # an aggregate without groups has one row
    if row["unscored"]:
        raise RunError(
            f"{row['unscored']} rows of {table.name} have a null or NaN score, for example in "
            f"query {row['query_id']!r}; score them or leave them out"
        )
    for name in known:
        if row["rows"] and row[name] == row["rows"]:
            return name, None, row["rows"]
    if not any(row[name] for name in known):
        return None, None, row["rows"]
    reason = (
        f"of {row['rows']} rows {row['retrieval_score']} have a retrieval_score and "
        f"{row['retrieval_rank']} a retrieval_rank"
    )
    if not table.own:
        raise RunError(
            f"the first stage of {table.name} is partial: {reason}; fill either column, or leave "
            "both out"
        )
    return None, f"The first stage is partial and was not measured: {reason}.", row["rows"]


def _with_labels(candidates: DataFrame, qrels: DataFrame) -> DataFrame:
    """Add `relevance` (int, null where a pair has no judgement)."""
    return candidates.join(qrels, on=["query_id", "doc_id"], how="left")


def _with_ranks(
    rows: DataFrame, order: str | None, keys: Sequence[str], tie_break: TieBreak
) -> DataFrame:
    """Add `after` and `before`, both ranks from 1 without gaps; scores become float32."""
    tie = F.col("doc_id").desc() if tie_break == "doc_id_desc" else F.col("doc_id").asc()
    # Of impressions of one pair the one that the first stage put first comes first.
    ties = [tie, F.asc_nulls_last("retrieval_rank"), F.desc_nulls_last("retrieval_score")]
    query = Window.partitionBy(*map(quoted, keys))

    def rank(first: Column) -> Column:
        return F.row_number().over(query.orderBy(first, *ties))

    # Adding 0.0 turns -0.0 into 0.0, which ties with it.
    single = {name: (F.col(name).cast("float") + F.lit(0.0)).cast("float")
              for name in ("score", "retrieval_score")}  # fmt: skip
    before = {None: F.lit(None).cast("int"), "retrieval_rank": rank(F.col("retrieval_rank").asc()),
              "retrieval_score": rank(F.col("retrieval_score").desc())}[order]  # fmt: skip
    ranks = {"after": rank(F.col("score").desc()), "before": before}
    return rows.withColumns(single).withColumns(ranks)


def _measured(
    rows: DataFrame, qrels: DataFrame, keys: Sequence[str], names: Sequence[str], count: int
) -> DataFrame:
    """The table per list, see `measure_bucket`.

    Rows and qrels move once, to buckets of whole queries.
    """
    buckets = max(1, math.ceil(count / _BUCKET))
    bucket = F.pmod(F.hash("query_id"), F.lit(buckets)).alias("_bucket")
    columns = [*map(quoted, keys), *map(F.col, ("doc_id", "score", "after", "before", "truncated"))]

    def grouped(table: DataFrame) -> Any:
        # An explicit number of partitions, as adaptive execution would make one of them.
        return table.repartition(buckets, "_bucket").groupBy("_bucket")

    sides = [side + name for name in names for side in (AFTER, BEFORE, CEILING)]
    sides = [name for name in sides if not name.startswith(f"{CEILING}Judged")]
    schema = ", ".join(
        f"`{name.replace('`', '``')}` {kind}"
        for name, kind in {**dict.fromkeys(keys, "string"), **dict.fromkeys(sides, "double"),
                           **_FACTS}.items()
    )  # fmt: skip
    measure = partial(measure_bucket, keys=list(keys), names=list(names))

    def in_order(candidates: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
        return measure(candidates, judgements)[[*keys, *sides, *_FACTS]]

    left, right = grouped(rows.select(*columns, bucket)), grouped(qrels.select("*", bucket))
    found: DataFrame = left.cogroup(right).applyInPandas(in_order, schema)
    return found


def _refuse_repeated(per_query: DataFrame) -> None:
    repeated = F.col("n_repeated") > 0
    row: Row | None = per_query.agg(
        F.sum("n_repeated").alias("rows"), F.min(F.when(repeated, F.col("query_id"))).alias("query")
    ).first()
    if row is not None and row["rows"]:
        raise RunError(
            f"{row['rows']} rows of the run repeat a (query_id, doc_id), for example in query "
            f"{row['query']!r}; keep one row per pair, or name the columns of a list in input.group"
        )


def _slices(rows: DataFrame, keys: Sequence[str], columns: Sequence[str]) -> DataFrame:
    """One value per list: the mean of a number, `mixed` where other values differ."""
    numeric = {field.name for field in rows.schema if field.dataType.typeName() in _NUMBERS}
    found = []
    for name in columns:
        column = quoted(name)
        if name in numeric:
            # Few digits: a mean of decimals is the same in any order.
            value = F.avg(column.cast("decimal(28,8)")).cast("double")
        else:
            text = column.cast("string")
            differ = F.min(text) != F.max(text)
            value = F.when(differ, "mixed").otherwise(F.coalesce(F.min(text), F.lit("none")))
        found.append(value.alias(name))
    return rows.groupBy(*map(quoted, keys)).agg(*found)
