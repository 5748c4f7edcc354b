"""Measure ranked tables against qrels, compare them, and hold the result against rules.

python -m jobs.evaluate --ranked.path OUT/ranked --evaluation.qrels QRELS --output.path EVAL
spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/evaluate.py ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from jobs.config import Config
from jobs.evaluation.report import render
from jobs.evaluation.result import evaluate
from jobs.output.folder import OutputFolder
from jobs.output.names import PER_QUERY
from jobs.output.publish import publish, result_files, track_run
from jobs.output.record import Stopwatch, evaluation_record, make_record
from jobs.output.summary import evaluation_summary
from jobs.preflight import check_evaluate
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, GATE_NOT_PASSED

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
    """Refuse all that can be refused, then measure, publish, report and log."""
    watch = Stopwatch()
    ready = check_evaluate(config, watch)
    with OutputFolder(ready.spark, config.output) as out:
        with watch.part("measuring"):
            judged, *further = (ready.tables[name] for name in ready.paths)
            document = evaluate(
                ready.plan, replace(judged, texts=ready.texts), further, ready.baseline,
                ready.qrels, out, tie_break=config.ranking.tie_break,
            )  # fmt: skip
        operations, gate = document.get("operations") or {}, document.get("gate")
        record = {
            **make_record("evaluate", run_id=out.run_id, config=config, watch=watch,
                          spark_version=ready.spark.version),
            "model": operations.get("model") or None,
            "device_ms": operations.get("ms_per_pair"),
            **evaluation_record(document),
        }  # fmt: skip
        files = result_files(record, document, render(document, record))
        # A failed rule is what this command reports; there is nothing better to keep in its place.
        places = publish(out, [PER_QUERY], files, hold_back=False)
    sys.stdout.write(evaluation_summary(document, places) + "\n")
    code = GATE_NOT_PASSED if gate and not gate["passed"] else DONE
    tracked = track_run(config.mlflow, out, record)
    return code or tracked


if __name__ == "__main__":
    sys.exit(main())
