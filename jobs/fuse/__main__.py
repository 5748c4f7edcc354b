"""Fuse ranked tables: the scores of several systems become one order.

python -m jobs.fuse --ranked.path a=A/ranked --ranked.path b=B/ranked --output.path OUT
spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/fuse/__main__.py ...
"""

import sys
from collections.abc import Sequence
from functools import partial, reduce
from typing import Final

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from jobs.config import Config, RankingConfig
from jobs.evaluation.ranked import Table, named, read_ranked, refuse_other_lists
from jobs.fuse.fusion import FUSED, weights_of, with_fused_score
from jobs.input.columns import quoted
from jobs.input.readers import INTERNAL_PREFIX
from jobs.output.catalog import refuse_table, write_table
from jobs.output.folder import OutputFolder
from jobs.output.locations import refuse_locations
from jobs.output.names import OPTIONAL, PARTITIONS, RANKED, REJECTS, RUN
from jobs.output.publish import publish, track_run
from jobs.output.record import Stopwatch, make_record
from jobs.output.summary import fuse_summary
from jobs.preflight import start
from jobs.runtime.command import Command
from jobs.runtime.errors import ErrorCollector

COMMAND = Command(
    name="python -m jobs.fuse",
    about="Fuse ranked tables: the scores of several systems become one order.",
    require=("ranked.path", "output.path"),
    sections="ranked ranking input output mlflow spark",
)
_FROM: Final = f"{INTERNAL_PREFIX}from"
_FIRST: Final = f"{INTERNAL_PREFIX}first"
_SCORE: Final = "score_"


@COMMAND
def main(config: Config) -> int:
    """Refuse all that can be refused, then fuse, publish and log."""
    watch = Stopwatch()
    config, spark, tables = check(config, watch)
    output, ids = config.output, [*map(quoted, (*config.input.group, "query_id", "doc_id"))]
    every = union(tables)
    fused = fuse(every, tables, config.ranking)
    if output.table:
        refuse_table(spark, output, fused.schema)
    with OutputFolder(spark, output) as out:
        with watch.part("fusing"):
            if output.partition_by:
                processed = every.select(*map(quoted, output.partition_by)).distinct()
                out.stage(PARTITIONS, processed.withColumn("(row)", F.lit(1)), "parquet")
            ranked = out.stage(RANKED, fused)
            counts = count(every.groupBy(*ids).count(), ranked)
        record = {
            **make_record("fuse", out, config, watch),
            "counts": counts,
        }  # fmt: skip
        kept = not counts["ranked"] and output.publish == "if_passed" and out.has_results()
        if output.table and not kept:
            write_table(spark, ranked, out.staged.get(PARTITIONS), output, out.run_id)
        places = publish(out, [RANKED], {RUN: record}, gone=OPTIONAL | {REJECTS}, hold_back=kept)
    sys.stdout.write(fuse_summary(counts, [table.name for table in tables], places) + "\n")
    if not counts["ranked"]:
        sys.stderr.write("no row was ranked\n")
    return track_run(config.mlflow, out, record)


def check(config: Config, watch: Stopwatch) -> tuple[Config, SparkSession, list[Table]]:
    """Look at everything `jobs.fuse` needs, and refuse all that cannot work.

    Returns the configuration with the fusion and the columns of a list resolved, and the tables.
    """
    errors, given, ranking = ErrorCollector(), config.input, config.ranking
    paths = errors.run(named, config.ranked.path) or {}
    if len(paths) == 1:
        errors.add(f"ranked.path={config.ranked.path[0]} is one table; give two or more to fuse")
    weights = errors.run(weights_of, ranking, list(paths), list(paths)) or {}
    if unused := [name for name in paths if weights and name not in weights]:
        errors.add(f"ranking.fusion_scores has no weight of {', '.join(unused)}; give it one")
    spark = start(errors, config, watch)
    with watch.part("reading"):
        errors.run(refuse_locations, spark, config.output, list(paths.values()), source="")
        read = partial(read_ranked, spark, group=given.group)
        found = [errors.run(read, name, path) for name, path in paths.items()]
        tables = [table for table in found if table]
        for table in tables[1:]:
            errors.run(refuse_other_lists, table, tables[0])
        group = tables[0].group if tables else ()
        if missing := [name for name in config.output.partition_by if name not in group]:
            errors.add(
                f"output.partition_by: a fused table is not partitioned by {', '.join(missing)}; "
                f"use columns of input.group, which are {', '.join(group) or 'none'}"
            )
    errors.raise_if_any()
    if ranking.fusion == "none":
        ranking = ranking.model_copy(update={"fusion": "rrf"})
    given = given.model_copy(update={"group": list(group)})
    return config.model_copy(update={"ranking": ranking, "input": given}), spark, tables


def union(tables: Sequence[Table]) -> DataFrame:
    """Return the candidates of all tables, with the number of the table that each is from."""
    rows = [table.candidates.withColumn(_FROM, F.lit(at)) for at, table in enumerate(tables)]
    return reduce(lambda above, below: above.unionByName(below, allowMissingColumns=True), rows)


def fuse(every: DataFrame, tables: Sequence[Table], config: RankingConfig) -> DataFrame:
    """Return the ranked table: a row for each document that any table has in a list.

    `score` is fused and makes the ranks; `score_NAME` is that of a table, the highest where it has
    several impressions of a document. First stage and label are those of the first table that
    knows them.
    """
    names, group = [table.name for table in tables], [*map(quoted, tables[0].group)]
    lists, place = [*group, F.col("query_id")], F.col("retrieval_rank")
    first = F.struct(_FROM, place, (-F.col("retrieval_score")).alias("retrieval_score"))
    known = F.isnotnull(F.coalesce(place.cast("double"), "retrieval_score"))
    found = {_FIRST: F.min(F.when(known, first))}
    if "label" in every.columns:
        label = F.min(F.when(F.isnotnull("label"), F.struct(_FROM, "label")))
        found["label"] = label["label"]
    for at, name in enumerate(names):
        found[_SCORE + name] = F.max(F.when(F.col(_FROM) == at, F.col("score")))
    made = [value.alias(name) for name, value in found.items()]
    rows = every.groupBy(*lists, "doc_id").agg(*made)
    rows = rows.withColumns({
        "retrieval_rank": F.col(_FIRST)["retrieval_rank"],
        "retrieval_score": -F.col(_FIRST)["retrieval_score"],
    })  # fmt: skip
    tie = [F.asc("doc_id") if config.tie_break == "doc_id_asc" else F.desc("doc_id")]
    scores = {name: quoted(_SCORE + name) for name in names}
    weights = weights_of(config, names, names)
    rows = with_fused_score(rows, scores, weights, config, lists, tie)
    if config.min_score is not None:
        rows = rows.where(F.col(FUSED) >= config.min_score)
    by_score = Window.partitionBy(*lists).orderBy(F.desc(FUSED), *tie)
    rows = rows.withColumn("rank", F.row_number().over(by_score))
    if config.top_k is not None:
        rows = rows.where(F.col("rank") <= config.top_k)
    return rows.select(
        "query_id", "doc_id", "rank", F.col(FUSED).alias("score"), "retrieval_rank",
        "retrieval_score", (place - F.col("rank")).alias("rank_change"),
        *(["label"] if "label" in found else []), *group, *scores.values(),
    )  # fmt: skip


def count(documents: DataFrame, ranked: DataFrame) -> dict[str, int]:
    """Return rows that came in, were merged with another one, cut and ranked, and lists."""
    given = documents.agg(F.sum("count"), F.count(F.lit(1))).collect()[0]
    written = ranked.agg(F.count(F.lit(1)), F.count_if(F.col("rank") == 1)).collect()[0]
    merged, cut = (given[0] or 0) - given[1], given[1] - written[0]
    return {"input": given[0] or 0, "merged": merged, "cut": cut, "ranked": written[0],
            "queries": written[1]}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
