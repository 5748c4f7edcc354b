"""How the scores of a day differ from those of the day before: the table `drift`.

A row a day: `previous` (the day before it that has results), `documents`, `queries` (lists),
`score_mean` and `score_p05` to `score_p95` [logit, to 0.001], `label_shares` (by grade from 0),
`from_store` (share of its pairs that the run found in the score store). Null for the first day:
`score_shift` (mean distance of the five quantiles) [logit], `label_shift` (total variation
distance) and `top1_change_rate` (lists of both days that have another first document).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.evaluation.labels import Grades
from jobs.input.columns import quoted
from jobs.input.layouts import PASS_THROUGH
from jobs.input.selection import day_of
from jobs.input.validation import ValidatedInput
from jobs.output.filesystem import literal
from jobs.output.folder import OutputFolder
from jobs.output.names import DRIFT, PARTITIONS, RANKED
from jobs.ranking import Results

_SHARES: Final = {f"score_p{int(share * 100):02}": share for share in (0.05, 0.25, 0.5, 0.75, 0.95)}
_SCHEMA: Final = (
    "day string, previous string, documents bigint, queries bigint, score_mean double, "
    + "".join(f"{name} double, " for name in _SHARES)
    + "label_shares array<double>, from_store double, score_shift double, label_shift double, "
    "top1_change_rate double"
)
Row = dict[str, Any]


def stage_drift(
    out: OutputFolder, done: ValidatedInput, results: Results, attempt: str | None,
    grades: Grades | None,
) -> list[Row] | None:  # fmt: skip
    """Stage the table and return its rows of the days of this run; None if lists are of no day.

    Rows of other published days stay; what they say of a day before them is renewed if that day is
    one of this run.

    Args:
        out: where it is staged, and the other days are read from.
        done: the input.
        results: the ranked table, staged.
        attempt: folder of the scores made by this run, None if there were none to make.
        grades: the rule of its grades, None without any.
    """
    config, spark = done.table.config, done.rows.sparkSession
    if not config.date or config.date not in config.group:
        return None
    name = results.group[config.group.index(config.date)]
    days = day_of(quoted(name))
    ranked = results.ranked.withColumn("day", days).where(F.isnotnull("day"))
    rows = _stored(done, attempt, _described(ranked, grades))
    processed = set(rows)
    if PARTITIONS in out.staged and name in out.staged[PARTITIONS].columns:
        looked_at = out.staged[PARTITIONS].select(days).distinct().collect()
        processed |= {row[0] for row in looked_at}
        former = out.published(DRIFT, "parquet")
        for row in former.collect() if former else []:
            if row["day"] not in processed:
                rows[row["day"]] = row.asDict()
    before = {day: previous for previous, day in pairwise(sorted(rows))}
    new = {
        day: previous for day, previous in before.items()
        if {day, previous} & processed or rows[day].get("previous") != previous
    }  # fmt: skip
    changed = _top_changes(out, ranked, name, results.group, new, processed)
    for day, numbers in rows.items():
        _compare(numbers, before.get(day), rows)
        if day in new or day not in before:
            numbers["top1_change_rate"] = changed.get(day)
    columns = [part.split()[0] for part in _SCHEMA.split(", ")]
    table = [tuple(rows[day].get(column) for column in columns) for day in sorted(rows)]
    out.stage(DRIFT, spark.createDataFrame(table, _SCHEMA).coalesce(1), "parquet")
    return [rows[day] for day in sorted(rows) if day in processed]


def _described(ranked: DataFrame, grades: Grades | None) -> dict[str, Row]:
    """The numbers of each day by itself."""
    score, first = F.col("score").cast("double"), F.col("rank") == 1
    found = ranked.groupBy("day").agg(
        F.count(F.lit(1)).alias("documents"), F.count_if(first).alias("queries"),
        F.avg(score).alias("score_mean"),
        F.percentile(F.round(score, 3), list(_SHARES.values())).alias("quantiles"),
    ).collect()  # fmt: skip
    rows = {row["day"]: row.asDict() for row in found}
    for row in rows.values():
        quantiles = zip(_SHARES, row.pop("quantiles"), strict=True)
        row.update({key: round(value, 3) for key, value in quantiles})
        row["score_mean"] = round(row["score_mean"], 6)
        row["label_shares"] = None
    if grades:
        for day, grade, count in (
            ranked.groupBy("day", quoted(grades.config.column)).count().collect()
        ):
            shares = rows[day]["label_shares"] or []
            shares += [0.0] * (grade + 1 - len(shares))
            shares[grade] = count / rows[day]["documents"]
            rows[day]["label_shares"] = shares
    return rows


def _stored(done: ValidatedInput, attempt: str | None, rows: dict[str, Row]) -> dict[str, Row]:
    """Add the share of the pairs that needed no scoring."""
    day = day_of(quoted(PASS_THROUGH + str(done.table.config.date))).alias("day")
    pairs = done.valid.select(day, "pair_key").distinct()
    scored = F.lit(0)
    if attempt:
        made = pairs.sparkSession.read.parquet(literal(attempt)).select("pair_key").distinct()
        pairs = pairs.join(made.withColumn("made", F.lit(1)), on="pair_key", how="left")
        scored = F.count("made")
    counts = pairs.groupBy("day").agg(F.count(F.lit(1)).alias("pairs"), scored.alias("scored"))
    for row in counts.collect():
        if row["day"] in rows:
            rows[row["day"]]["from_store"] = round(1 - row["scored"] / row["pairs"], 6)
    return rows


def _compare(row: Row, previous: str | None, rows: Mapping[str, Row]) -> None:
    """Set what follows from the numbers of both days alone."""
    row.update({"previous": previous, "score_shift": None, "label_shift": None})
    if previous is None:
        return
    other = rows[previous]
    row["score_shift"] = round(float(np.mean([abs(row[q] - other[q]) for q in _SHARES])), 6)
    here, there = row["label_shares"], other["label_shares"]
    if here and there:
        size = max(len(here), len(there))
        apart = np.subtract(*(np.pad(each, (0, size - len(each))) for each in (here, there)))
        row["label_shift"] = round(float(np.abs(apart).sum() / 2), 6)


def _top_changes(
    out: OutputFolder, ranked: DataFrame, date: str, group: Sequence[str],
    previous: Mapping[str, str], processed: set[str],
) -> dict[str, float]:  # fmt: skip
    """Return the share of lists with another first document than on the day before, by day.

    `previous`: the days in question with the days before them, some of which only what is published
    has.
    """
    if not previous:
        return {}
    lists = [name for name in (*group, "query_id") if name != date]

    def tops(table: DataFrame, days: set[str]) -> DataFrame:
        # Null is a value of a column of input.group, and has to meet null in the join.
        texts = [
            F.coalesce(quoted(name).cast("string"), F.lit("\0")).alias(name)
            for name in (*lists, "doc_id")
        ]
        wanted = (F.col("rank").cast("int") == 1) & F.col("day").isin(sorted(days))
        return table.where(wanted).select("day", *texts)

    days = {*previous, *previous.values()}
    found = tops(ranked, days & processed)
    if (others := days - processed) and (published := out.published(RANKED)):
        found = found.union(tops(published.withColumn("day", day_of(quoted(date))), others))
    pairs = found.sparkSession.createDataFrame([*previous.items()], "day string, before string")
    here = found.join(pairs, on="day")
    there = found.withColumnsRenamed({"day": "before", "doc_id": "former"})
    both = here.join(there, on=["before", *lists]).groupBy("day")
    changed = both.agg(F.avg((F.col("doc_id") != F.col("former")).cast("int")).alias("changed"))
    return {row["day"]: round(row["changed"], 6) for row in changed.collect()}
