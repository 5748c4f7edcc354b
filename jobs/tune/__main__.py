"""Find settings for a table and a model: lengths, speed, memory, and agreement with float32.

python -m jobs.tune --config conf/local.yaml --input.path IN --output.path OUT
spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/tune/__main__.py --config conf/gpu.yaml ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from pyspark.sql import functions as F

from jobs.config import Config
from jobs.evaluation.report import render_tuning
from jobs.evaluation.result import labels_of
from jobs.input.validation import with_pair_keys
from jobs.output.folder import OutputFolder
from jobs.output.names import RECOMMENDED, TUNING, TUNING_PAGE
from jobs.output.publish import publish, track_run
from jobs.output.record import Stopwatch
from jobs.preflight import Tune, check_tune
from jobs.runtime.command import Command
from jobs.runtime.errors import RefusedError
from jobs.runtime.session import task_slots
from jobs.scoring.onnx_export import missing_packages
from jobs.scoring.stage import make_spec
from jobs.scoring.token_lengths import sample_lengths
from jobs.tune.document import make_document, recommended_yaml
from jobs.tune.executors import Executors, device_of
from jobs.tune.recommend import choose
from jobs.tune.sample import draw_sample
from jobs.tune.settings import batch_sizes, engines, lengths_to_try, make_grid
from jobs.tune.summary import closing_summary
from jobs.tune.sweep import Budget, sweep

COMMAND = Command(
    name="python -m jobs.tune",
    about="Find settings for a table and a model: lengths, speed, memory, agreement with float32.",
    require=("model.name", "input.path|input.table|input.run", "output.path"),
    sections="tune input model batching evaluation output mlflow spark",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of `jobs.runtime.errors`."""
    return COMMAND.run(argv, run)


def run(config: Config) -> int:
    """Refuse all that can be refused, then tune."""
    watch = Stopwatch()
    return tune(config, check_tune(config, watch), watch)


def tune(config: Config, ready: Tune, watch: Stopwatch) -> int:
    """Sample, measure, recommend, write, track."""
    spark, checkpoint, pairs = ready.spark, ready.checkpoint, ready.pairs
    out = OutputFolder(spark, config.output)
    draft = make_spec(config, checkpoint)
    with watch.part("sampling"):
        device = device_of(spark, draft)
        qrels = ready.qrels
        if qrels is None and "label" in pairs.has:
            qrels = labels_of(pairs.rows)
        number = with_pair_keys(pairs).select(F.count_distinct("pair_key")).collect()[0][0]
        lengths = sample_lengths(pairs, checkpoint.path, draft)
        if lengths is None:
            raise RefusedError("no row of the input can be scored; see jobs.rerank --dry-run")
        sample = draw_sample(pairs, qrels, config.tune, on_gpu=device == "cuda")
    given_engines = engines(config.tune, device, has_onnx=not missing_packages())
    tried = lengths_to_try(config.tune, lengths, checkpoint.positions)
    grid = make_grid(config.tune, config.batching, device, (given_engines, tried))
    with watch.part("preparing"):
        executors = Executors(spark, config, checkpoint, given_engines)
        executors.start(grid[0], sample)
    with watch.part("measuring"):
        found = sweep(
            grid,
            sample,
            executors.measure,
            Budget(config.tune.seconds, time.monotonic),
            partial(choose, config.tune),
            partial(batch_sizes, config.tune),
        )
    document = make_document(
        run_id=out.run_id, config=config, checkpoint=checkpoint, device=device,
        slots=task_slots(spark), pairs=number, lengths=lengths, sample=sample, found=found,
        watch=watch, spark_version=spark.version,
    )  # fmt: skip
    with out:
        recommended = recommended_yaml(document) if document["recommended"] else None
        files: dict[str, Any] = {RECOMMENDED: recommended} if recommended else {}
        files |= {TUNING_PAGE: render_tuning(document), TUNING: document}
        publish(out, [], files, gone={RECOMMENDED})
    names = {"recommended": RECOMMENDED, "page": TUNING_PAGE, "record": TUNING}
    places = {key: out.place(name) for key, name in names.items() if name in files}
    sys.stdout.write(closing_summary(document, places) + "\n")
    return track_run(config.mlflow, out, document, TUNING)


if __name__ == "__main__":
    sys.exit(main())
