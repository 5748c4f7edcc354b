"""The process that Spark forks Python workers from, with torch imported already.

    spark.python.daemon.module = udfs.daemon

Importing torch and transformers takes five seconds of a core. Done here, that is paid once on a
machine and not in every worker, and the workers share the memory. Only for machines without a GPU:
CUDA does not survive a fork, and nobody can promise that no import ever touches it.
"""

import gc

from pyspark.daemon import manager

if __name__ == "__main__":
    # Everything a model needs; `import transformers` alone imports next to nothing.
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401

    # A worker collects garbage after every task, which takes a third of a second through all that
    # was imported here; frozen, it is neither looked at nor copied.
    gc.freeze()
    manager()
