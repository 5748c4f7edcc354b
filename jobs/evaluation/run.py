"""One ranked table, measured: everything that needs its rows.

What comes out is small: staged tables, values per list, counts. `jobs.evaluation.document` makes
the result of them, and never sees a pair.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import NumericType

from jobs.evaluation.measures import ADDED, BEFORE, FACTS, JUDGED, measure_bucket, value_columns
from jobs.evaluation.ranked import Table
from jobs.input.columns import quoted
from jobs.runtime.errors import RefusedError

# Rows that one call of the measuring function holds in memory: about 10 MB. Smaller buckets would
# spend more time on calls than on measures, larger ones leave cores idle.
_BUCKET: Final = 20_000


@dataclass(frozen=True)
class RunEvaluation:
    """What is known of one table.

    Attributes:
        name: of the table.
        keys: columns that identify a list, query_id last.
        first_stage_order: column that gave the first stage's order, None without a first stage.
        partial: why there is no first-stage order although some rows have one, else None.
        rows: the candidates with `after`, `before` and `relevance`, as staged.
        per_query: the table per list, see `measure_bucket`, with the slices, as staged.
        values: its judged lists, in order of `keys`.
    """

    name: str
    keys: tuple[str, ...]
    first_stage_order: str | None
    partial: str | None
    rows: DataFrame
    per_query: DataFrame
    values: pd.DataFrame

    def counts(self) -> dict[str, int]:
        """Lists of the qrels, and how many of them have no candidate, and so on."""
        return {
            "queries": len(self.values),
            "queries_judged": int((self.values["n_judged"] > 0).sum()),
            "queries_unanswered": int((~self.values["answered"]).sum()),
            "queries_without_relevant": int((self.values["n_relevant"] == 0).sum()),
            "queries_only_in_run": self.per_query.where(~F.col("judged")).count(),
        }


def evaluate_run(
    table: Table, qrels: DataFrame, measures: Sequence[str],
    stage: Callable[[str, DataFrame], DataFrame], *, tie_break: str = "doc_id_desc",
    slices: Sequence[str] = (),
) -> RunEvaluation:  # fmt: skip
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
        stage: writes a table under a name and reads it back.
        tie_break: order of equal scores, in both stages.
        slices: columns that have one value per list, or numbers whose mean is taken.

    Raises:
        RefusedError: missing scores, repeated pairs in a table of somebody else's, or retrieval
            scores and ranks that are both incomplete in one.
    """
    keys = (*table.group, "query_id")
    names = tuple(dict.fromkeys([*measures, JUDGED]))
    order, partial_order, count = _check(table)
    groups = {name: F.coalesce(quoted(name).cast("string"), F.lit("none")) for name in table.group}
    own = [name for name in ADDED if name not in keys]  # a table may have columns of these names
    candidates = table.candidates.withColumns(groups).drop(*own)
    labelled = candidates.join(qrels, ["query_id", "doc_id"], "left")
    rows = stage("candidates", _with_ranks(labelled, order, keys, tie_break))
    per_query = _measured(rows, qrels, keys, names, count + qrels.count())
    if order is None:
        per_query = per_query.drop(*(BEFORE + name for name in names))
    if others := [name for name in slices if name not in keys]:
        per_query = per_query.join(_slices(rows, keys, others), on=list(keys), how="left")
    per_query = stage("per_query", per_query)
    repeated = per_query.where("n_repeated > 0").agg(F.sum("n_repeated"), F.min("query_id"))
    if not table.own and (found := repeated.collect()[0])[0]:
        raise RefusedError(
            f"{found[0]} rows of the run repeat a (query_id, doc_id), for example in query "
            f"{found[1]!r}; keep one row per pair, or name the columns of a list in input.group"
        )
    values = per_query.where("judged").toPandas().sort_values(list(keys), ignore_index=True)
    per_query = per_query.drop("n_repeated")
    return RunEvaluation(table.name, keys, order, partial_order, rows, per_query, values)


def _check(table: Table) -> tuple[str | None, str | None, int]:
    """Column of the first stage's order, why there is none although it is there in part, rows."""
    unscored = F.col("score").isNull() | F.isnan("score")
    known = {"retrieval_score": F.nanvl(F.col("retrieval_score").cast("double"), F.lit(None)),
             "retrieval_rank": F.col("retrieval_rank")}  # fmt: skip
    row = table.candidates.agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_if(unscored).alias("unscored"),
        F.min(F.when(unscored, F.col("query_id"))).alias("query_id"),
        *(F.count(column).alias(name) for name, column in known.items()),
    ).collect()[0]
    if row["unscored"]:
        raise RefusedError(
            f"{row['unscored']} rows of {table.name} have a null or NaN score, for example in "
            f"query {row['query_id']!r}; score them or leave them out"
        )
    if complete := [name for name in known if 0 < row[name] == row["rows"]]:
        return complete[0], None, row["rows"]
    if not any(row[name] for name in known):
        return None, None, row["rows"]
    reason = (
        f"of {row['rows']} rows {row['retrieval_score']} have a retrieval_score and "
        f"{row['retrieval_rank']} a retrieval_rank"
    )
    if not table.own:
        raise RefusedError(
            f"the first stage of {table.name} is partial: {reason}; fill either column, or leave "
            "both out"
        )
    return None, f"The first stage is partial and was not measured: {reason}.", row["rows"]


def _with_ranks(
    rows: DataFrame, order: str | None, keys: Sequence[str], tie_break: str
) -> DataFrame:
    """Add `after` and `before`, both ranks from 1 without gaps; scores become float32."""
    tie = F.desc("doc_id") if tie_break == "doc_id_desc" else F.asc("doc_id")
    # Of impressions of one pair the one that the first stage put first comes first.
    ties = [tie, F.asc_nulls_last("retrieval_rank"), F.desc_nulls_last("retrieval_score")]
    query = Window.partitionBy(*map(quoted, keys))
    # Adding 0.0 turns -0.0 into 0.0, which ties with it.
    single = {name: (F.col(name).cast("float") + F.lit(0.0)).cast("float")
              for name in ("score", "retrieval_score")}  # fmt: skip
    ranks = {"after": F.row_number().over(query.orderBy(F.desc("score"), *ties))}
    if order is None:
        ranks["before"] = F.lit(None).cast("int")
    else:
        first = F.asc(order) if order == "retrieval_rank" else F.desc(order)
        ranks["before"] = F.row_number().over(query.orderBy(first, *ties))
    return rows.withColumns(single).withColumns(ranks)


def _measured(
    rows: DataFrame, qrels: DataFrame, keys: Sequence[str], names: Sequence[str], count: int
) -> DataFrame:
    """The table per list; rows and qrels move once, to buckets of whole queries."""
    buckets = max(1, math.ceil(count / _BUCKET))
    bucket = F.pmod(F.hash("query_id"), F.lit(buckets)).alias("_bucket")
    measured = ("doc_id", "score", "after", "before", "truncated")
    columns = [*map(quoted, keys), *map(F.col, measured)]
    # An explicit number of partitions, as adaptive execution would make one of them.
    left, right = (
        table.repartition(buckets, "_bucket").groupBy("_bucket")
        for table in (rows.select(*columns, bucket), qrels.select("*", bucket))
    )
    types = {**dict.fromkeys(keys, "string"),
             **dict.fromkeys(value_columns(names), "double"), **FACTS}  # fmt: skip
    schema = ", ".join(f"`{name.replace('`', '``')}` {kind}" for name, kind in types.items())

    def measure(candidates: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
        return measure_bucket(candidates, judgements, keys, names)

    return left.cogroup(right).applyInPandas(measure, schema)


def _slices(rows: DataFrame, keys: Sequence[str], columns: Sequence[str]) -> DataFrame:
    """One value per list: the mean of a number, `mixed` where other values differ."""
    numeric = {field.name for field in rows.schema if isinstance(field.dataType, NumericType)}
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
