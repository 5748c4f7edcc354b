"""What a user would write instead, as the two libraries' documentation has it.

Needs `pip install spark-rerank[peers]`; ONNX and OpenVINO need more, see README.md here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.benchmark.task import Outcome, Task

_WARM_UP: Final = 64  # pairs scored before the clock starts
_BATCH: Final = 128  # rows that predict_batch_udf hands to predict(), which makes batches of 32


def sentence_transformers(task: Task, **settings: Any) -> Outcome:
    """Time `CrossEncoder(model).predict(pairs)`, raw logits."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(task.model, max_length=task.settings.model.max_length, **settings)

    def predict(pairs: list[tuple[str, str]]) -> Any:
        return model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)

    return _timed(task, predict)


def sentence_transformers_bf16(task: Task) -> Outcome:
    """Time the same in bf16."""
    return sentence_transformers(task, model_kwargs={"torch_dtype": "bfloat16"})


def sentence_transformers_onnx(task: Task) -> Outcome:
    """Time the same with ONNX Runtime."""
    return sentence_transformers(task, backend="onnx")


def sentence_transformers_openvino(task: Task) -> Outcome:
    """Time the same with OpenVINO, which chooses bf16 where the CPU has it."""
    return sentence_transformers(task, backend="openvino")


def flagembedding(task: Task) -> Outcome:
    """Time `FlagReranker(model).compute_score(pairs)`, raw logits; fp16 on CUDA only."""
    import torch
    from FlagEmbedding import FlagReranker

    model = FlagReranker(
        task.model,
        use_fp16=torch.cuda.is_available(),
        max_length=task.settings.model.max_length,
        devices=None if torch.cuda.is_available() else "cpu",
    )
    return _timed(task, lambda pairs: model.compute_score(pairs))


def _timed(task: Task, predict: Callable[[list[tuple[str, str]]], Any]) -> Outcome:
    pairs = list(zip(*task.texts(), strict=True))
    predict(pairs[:_WARM_UP])
    start = time.perf_counter()
    scores = predict(pairs)
    seconds = time.perf_counter() - start
    logits = np.asarray(scores, dtype=np.float32).tolist()
    return Outcome(seconds, logits, time.time() - task.spawned)


def cross_encoder_udf(model_dir: str, max_length: int) -> Callable[..., Any]:
    """Return Spark's `predict_batch_udf` around a CrossEncoder, raw logits."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import FloatType

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
