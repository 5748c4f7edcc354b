"""The process that Spark forks Python workers from, with torch and the model in memory already.

    spark.python.daemon.module = udfs.daemon

Importing torch and transformers takes five seconds of a core, and a model takes memory. Here both
are paid once and not in every worker. Only for machines without a GPU: CUDA does not survive a
fork, and nobody can promise that no import ever touches it.
"""

import gc
import os
import sys

from pyspark.daemon import manager

if __name__ == "__main__":
    # Spark reads a port from the standard output; what libraries print there goes to the log.
    output = os.dup(1)
    os.dup2(2, 1)

    # Everything a model needs; `import transformers` alone imports next to nothing, and the last
    # of these takes as long as torch.
    from transformers import (  # noqa: F401
        AutoModelForSequenceClassification,
        AutoTokenizer,
        PreTrainedModel,
    )

    from udfs.shared import load_wished

    load_wished()
    # A worker collects garbage after every task, which takes a third of a second through all that
    # was imported here; frozen, it is neither looked at nor copied.
    gc.freeze()

    sys.stdout.flush()
    os.dup2(output, 1)
    os.close(output)
    manager()
