"""Measure ranked tables against qrels, compare them, and hold the result against rules.

python -m jobs.evaluate --ranked.path OUT/ranked --evaluation.qrels QRELS --output.path EVAL
spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/evaluate.py ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.config import Config
from jobs.evaluation.ranked import record_beside
from jobs.evaluation.report import render
from jobs.evaluation.result import PER_QUERY, Table, evaluate
from jobs.output import publish as finish
from jobs.output.folder import OutputFolder
from jobs.output.record import Stopwatch, make_evaluation_record
from jobs.output.summary import evaluation_summary
from jobs.preflight import Evaluate, check_evaluate
from jobs.runtime.command import Command

COMMAND = Command(
    name="python -m jobs.evaluate",
    about="Measure ranked tables against qrels, compare them, and hold the result against rules.",
    require=("ranked.path", "output.path"),
    sections="ranked evaluation ranking input report output mlflow spark",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of `jobs.runtime.errors`."""
    return COMMAND.run(argv, run)


def run(config: Config) -> int:
    """Refuse all that can be refused, then measure."""
    watch = Stopwatch()
    return measure(config, check_evaluate(config, watch), watch)


def measure(config: Config, ready: Evaluate, watch: Stopwatch) -> int:
    """Measure, publish, record, report, track."""
    spark, (name, *_) = ready.spark, ready.paths
    out = OutputFolder(spark, str(config.output.path), config.output.format)
    further = {other: table for other, table in ready.tables.items() if other != name}
    with finish.mlflow_client(config) as client:
        if config.mlflow.enabled:
            client.start()
        with out:
            with watch.part("measuring"):
                beside = record_beside(spark, ready.paths[name])
                judged = Table(name, ready.tables[name], beside, ready.texts)
                document = evaluate(
                    ready.plan, judged, further, ready.baseline, ready.qrels, out,
                    tie_break=config.ranking.tie_break,
                )  # fmt: skip
            record = make_evaluation_record(
                run_id=out.run_id, config=config, document=document, watch=watch,
                spark_version=spark.version,
            )  # fmt: skip
            report = render(document, record)
            places = finish.publish(out, [PER_QUERY], record, document, report)
        sys.stdout.write(evaluation_summary(document, places) + "\n")
        return finish.exit_code(document, finish.track_run(client, config, out, record))


if __name__ == "__main__":
    sys.exit(main())
