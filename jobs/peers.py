"""What a user would write instead: Spark's `predict_batch_udf` around sentence-transformers.

    python -m jobs.peers MODEL_DIR IN.parquet OUT MASTER

A process of its own, from Parquet to Parquet, as in the documentation of the two libraries. Needs
`pip install spark-rerank[peers]`. It is here to be measured against (see `jobs.bench`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import FloatType

_BATCH: Final = 128  # rows handed to predict(), which makes batches of 32 of its own


def cross_encoder_udf(model_dir: str, max_length: int) -> Callable[..., Any]:
    """predict_batch_udf with a CrossEncoder, raw logits."""

    def make_predict() -> Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float32]]:
        import torch
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(model_dir, max_length=max_length)

        def predict(queries: NDArray[Any], docs: NDArray[Any]) -> NDArray[np.float32]:
            pairs = list(zip(queries.tolist(), docs.tolist(), strict=True))
            scores: NDArray[np.float32] = model.predict(
                pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False
            )
            return scores

        return predict

    udf: Callable[..., Any] = predict_batch_udf(
        make_predict,  # type: ignore[arg-type]
        return_type=FloatType(),
        batch_size=_BATCH,
    )
    return udf


def main(model_dir: str, source: str, target: str, master: str) -> None:
    """Score a Parquet table of pairs into another one."""
    spark = (
        SparkSession.Builder()
        .appName("predict_batch_udf")
        .master(master)
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    rows = spark.read.parquet(source)
    # As many partitions as cores: one small file would otherwise be scored by one of them.
    rows = rows.repartition(spark.sparkContext.defaultParallelism)
    score = cross_encoder_udf(model_dir, 512)("query", "doc")
    rows.select("query_id", "doc_id", score.alias("score")).write.parquet(target)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:5])
