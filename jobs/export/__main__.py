"""Make a training set of a ranked table: positives by its labels, hard negatives by its scores.

python -m jobs.export --ranked.path OUT/ranked --input.path IN --output.path SET
spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/export/__main__.py ...

The input is the one that was ranked: it has the texts. Writes SET/training/split=train and
split=dev, and SET/run.json.
"""

import math
import sys
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import Config, ModelConfig
from jobs.export.choose import HELD_OUT, TRAIN
from jobs.export.mining import formatted, mine, read_rows
from jobs.output.folder import OutputFolder
from jobs.output.locations import refuse_locations
from jobs.output.names import RUN, TRAINING
from jobs.output.publish import publish, track_run
from jobs.output.record import Stopwatch, make_record
from jobs.preflight import read_inputs, start
from jobs.runtime.command import Command
from jobs.runtime.errors import ErrorCollector, RefusedError

COMMAND: Final = Command(
    name="python -m jobs.export",
    about="Make a training set of a ranked table: labels, hard negatives and the teacher's scores.",
    require=("ranked.path", "input.path|input.table|input.run", "output.path"),
    sections="export ranked input evaluation output mlflow spark",
)
_QUERIES_PER_FILE: Final = 10_000


@COMMAND
def main(config: Config) -> int:
    """Refuse all that can be refused, then mine, write and log."""
    watch, options = Stopwatch(), config.export
    spark, ranked, texts, qrels = check(config, watch)
    with OutputFolder(spark, config.output) as out:
        with watch.part("mining"):
            mined = mine(ranked, texts, qrels, options)
            mined = out.stage("mined", mined, "parquet")
            counts = count(mined)
        if not counts[TRAIN]:
            count_needed = options.negatives if options.format == "n-tuple" else 1
            raise RefusedError(
                f"{config.ranked.path[0]} has no query to train on: none has both a text with a "
                f"grade of at least export.positive={options.positive} and {count_needed} within "
                "export.rank_min, rank_max, max_score and the margins; change them, or its labels"
                if not counts[HELD_OUT]
                else f"export.held_out={options.held_out} leaves none of the {counts[HELD_OUT]} "
                "queries to train on; lower it"
            )
        with watch.part("writing"):
            kind = "json" if options.format == "flagembedding" else "parquet"
            for split in (TRAIN, HELD_OUT):
                files = math.ceil(max(1, counts[split]) / _QUERIES_PER_FILE)
                part = mined.where(F.col("split") == split)
                out.stage(f"{TRAINING}/split={split}", formatted(part, options, files), kind)
        record = {
            **make_record("export", out, config, watch),
            "counts": counts,
        }  # fmt: skip
        places = publish(out, [TRAINING], {RUN: record})
    shown = [f"{name:<10} {number:>12,}" for name, number in counts.items()]
    sys.stdout.write("\n".join([*shown, "", f"{TRAINING:<10} {places[TRAINING]}"]) + "\n")
    return track_run(config.mlflow, out, record)


def check(
    config: Config, watch: Stopwatch
) -> tuple[SparkSession, DataFrame, DataFrame, DataFrame | None]:
    """Look at everything `jobs.export` needs, and refuse all that cannot work.

    Returns the ranked table, the texts without instructions, and qrels if labels do not judge.
    """
    errors, (path, *others) = ErrorCollector(), config.ranked.path
    if others:
        errors.add(f"ranked.path: jobs.export takes one table; leave out {', '.join(others)}")
    spark = start(errors, config, watch)
    with watch.part("reading"):
        errors.run(refuse_locations, spark, config.output, [path], source="")
        given = config.input.model_copy(update={"instruction": None})
        plain = config.model_copy(update={"model": ModelConfig(), "input": given})
        pairs, qrels = read_inputs(errors, spark, plain, None)
        graded = not config.evaluation.qrels
        days = given.model_copy(update={"where": None})
        ranked = errors.run(read_rows, spark, path, config.export, days, graded=graded)
    errors.raise_if_any()
    assert ranked is not None and pairs is not None  # or it was refused
    return spark, ranked, pairs.rows.where(F.isnull("reason")), qrels


def count(mined: DataFrame) -> dict[str, int]:
    """Return queries by split, their positives and negatives, and what was left out of them."""
    row: Any = mined.agg(
        *(F.count_if(F.col("split") == split).alias(split) for split in (TRAIN, HELD_OUT)),
        F.sum("positives").alias("positives"),
        F.sum(F.size("docs") - F.col("positives")).alias("negatives"),
        *(F.sum(name).alias(name) for name in ("repeated", "no_text")),
    ).collect()[0]
    return {name: int(number or 0) for name, number in row.asDict().items()}


if __name__ == "__main__":
    sys.exit(main())
