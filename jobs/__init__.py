"""The driver's side of spark-rerank: commands, tables, the score store, ranking and tracking."""

import sys

if sys.platform == "win32":  # here, as the next import fails there
    sys.stderr.write(
        "refused: spark-rerank does not run on Windows itself, which lacks the file locks and "
        "forks it needs; run the same command in WSL 2, in a container or on a Linux machine\n"
    )
    raise SystemExit(2)  # jobs.runtime.errors.REFUSED
