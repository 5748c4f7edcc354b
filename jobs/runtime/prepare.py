"""Make later starts faster on this machine: `python -m jobs.runtime.prepare`.

Runs a small job once, and keeps the Java classes that it took (see `jobs.runtime.jvm`).
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from pyspark import SparkContext

from jobs import rerank
from jobs.demo import FOLDER
from jobs.runtime.errors import DONE
from jobs.runtime.jvm import keep, keeping_classes, with_kept_classes

_PATIENCE: Final = 300.0  # s, for the JVM to write what it knows


def main() -> int:
    """Keep the classes, unless they are there; what cannot be done is said and does no harm."""
    if with_kept_classes():
        return DONE
    with tempfile.TemporaryDirectory(prefix="spark-rerank-") as folder:
        made = Path(folder) / "classes.jsa"
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = rerank.main(
                [
                    *("--input.path", str(FOLDER / "sample.jsonl")),
                    *("--input.doc_template", "{title}\\n{body}"),
                    *("--model.name", "embedded"),
                    *("--model.backend", "stub"),
                    *("--output.path", f"{folder}/out"),
                    *("--mlflow.enabled", "false"),
                    *("--spark.master", "local[2]"),
                    *("--spark.settings", f"spark.driver.extraJavaOptions={keeping_classes(made)}"),
                ]
            )
        place = None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if code == DONE:
                _end_java()
                place = keep(made)
    if place is None:
        sys.stderr.write("Java kept no classes: sessions start as slowly as they do everywhere\n")
    else:
        sys.stdout.write(f"kept       Spark's Java classes in {place}\n")
    return DONE


def _end_java() -> None:
    """Stop Spark and wait for its JVM, which writes the file last of all."""
    context = SparkContext._active_spark_context
    gateway: Any = SparkContext._gateway
    if context is not None:
        context.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(_PATIENCE)


if __name__ == "__main__":
    sys.exit(main())
