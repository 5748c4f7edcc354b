"""Measure ranked tables against qrels, compare them, and hold the result against rules.

python -m jobs.evaluate --ranked.path OUT/ranked --evaluation.qrels QRELS --output.path EVAL
spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/evaluate.py ...
"""

import sys

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


@COMMAND
def main(config: Config) -> int:
    """Refuse all that can be refused, then measure, publish, report and log."""
    watch = Stopwatch()
    ready = check_evaluate(config, watch)
    with OutputFolder(ready.spark, config.output) as out:
        with watch.part("measuring"):
            document = evaluate(
                ready.plan, ready.tables[0], ready.tables[1:], ready.baseline, ready.qrels, out,
                tie_break=config.ranking.tie_break,
            )  # fmt: skip
        operations, gate = document.get("operations") or {}, document.get("gate")
        record = {
            **make_record("evaluate", out, config, watch),
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
