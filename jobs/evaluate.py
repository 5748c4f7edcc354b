"""Measure ranked tables against qrels, compare them, and hold the result against rules.

python -m jobs.evaluate --ranked.path OUT/ranked --evaluation.qrels QRELS --output.path EVAL
spark-submit --py-files dist/spark-rerank.zip jobs/evaluate.py ...
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial

from pyspark.sql import SparkSession

from jobs import finish
from jobs.command import Command
from jobs.config import Config
from jobs.errors import RefusedError
from jobs.evaluation.plan import Plan, make_plan
from jobs.evaluation.ranked import named, read_ranked, record_beside
from jobs.evaluation.result import PER_QUERY, Table, evaluate, find_baseline, read_judgements
from jobs.output import OutputFolder, refuse_overlap
from jobs.record import Stopwatch, make_evaluation_record
from jobs.session import open_session
from jobs.summary import evaluation_summary
from jobs.tables import read_pairs
from jobs.tracking.client import fetch_baseline

COMMAND = Command(
    name="python -m jobs.evaluate",
    about="Measure ranked tables against qrels, compare them, and hold the result against rules.",
    require=("ranked.path", "output.path"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of `jobs.errors`."""
    return COMMAND.run(argv, run)


def run(config: Config) -> int:
    """Refuse what can be refused without Spark, open the session, and measure."""
    watch = Stopwatch()
    plan = make_plan(config.evaluation, config.report)
    tables = named(config.ranked.path)
    if plan.baseline == next(iter(tables)):
        raise RefusedError(
            f"evaluation.baseline={plan.baseline} is the table that is judged; name another one"
        )
    given = config.input
    if plan.examples and not (given.path or given.table or given.run):
        raise RefusedError(
            "report.examples shows texts, which a ranked table does not hold; set input.path "
            "to the table it was made from, or leave report.examples out"
        )
    with watch.part("session"):
        spark = open_session(config)
    return measure(spark, config, plan, tables, watch)


def measure(
    spark: SparkSession, config: Config, plan: Plan, paths: Mapping[str, str], watch: Stopwatch
) -> int:
    """Read, measure, publish, record, report, track."""
    target = str(config.output.path)
    refuse_overlap(spark, paths.values(), target)
    out = OutputFolder(spark, target, config.output.format)
    with out:
        with watch.part("reading"):
            (name, path), *others = paths.items()
            table = read_ranked(spark, path, plan.slices)
            further = {other: read_ranked(spark, where, ()) for other, where in others}
            qrels = read_judgements(spark, config.evaluation.qrels, table)
            if qrels is None:
                raise RefusedError(
                    "there is nothing to measure by: set evaluation.qrels, or give a ranked table "
                    "with a column label"
                )
            texts = read_pairs(spark, config.input, config.model).rows if plan.examples else None
            baseline = find_baseline(spark, plan, further, partial(fetch_baseline, config.mlflow))
        with watch.part("measuring"):
            judged = Table(name, table, record_beside(spark, path), texts)
            document = evaluate(
                plan, judged, further, baseline, qrels, out, tie_break=config.ranking.tie_break
            )
        out.publish([PER_QUERY])
    record = make_evaluation_record(
        run_id=out.run_id, config=config, document=document, watch=watch,
        spark_version=spark.version,
    )  # fmt: skip
    places = {PER_QUERY: out.place(PER_QUERY), **finish.write(out, record, document)}
    sys.stdout.write(evaluation_summary(document, places) + "\n")
    return finish.exit_code(document, finish.track_run(config, out, record))


if __name__ == "__main__":
    sys.exit(main())
