from __future__ import annotations

import pytest

from jobs.config import Config, ModelConfig, SparkConfig
from jobs.runtime.errors import RefusedError
from jobs.runtime.session import open_session
from jobs.scoring.stage import resolve_precision
from udfs import devices


@pytest.mark.parametrize(
    ("spark", "said"),
    [
        ({"settings": {"spark.task.resource.gpu.amount": "1"}}, "which has no executors"),
        ({"settings": {"spark.executor.pyspark.memory": "2g"}}, "limits virtual memory"),
        (
            {
                "master": "spark://host:7077",
                "settings": {"spark.task.resource.gpu.amount": "1", "spark.speculation": "true"},
            },
            "spark.speculation=true",
        ),
        ({"master": "local[many]"}, "is no master"),
        ({"settings": {"spark.remote": "sc://host"}}, "spark.remote=sc://host asks for Spark Conn"),
        ({"master": "sc://host"}, "spark.master=sc://host asks for Spark Connect"),
        ({"settings": {"spark.api.mode": "connect"}}, "no driver JVM"),
    ],
)
def test_settings_that_break_scoring_are_refused_before_spark_starts(
    spark: dict[str, object], said: str
) -> None:
    with pytest.raises(RefusedError, match=said):
        open_session(SparkConfig.model_validate(spark))


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("local", "local[1,4]"), ("local[2]", "local[2,4]"), ("local[*]", "local[*,4]"),
        ("local[2,1]", "local[2,1]"), ("local[2, 8]", "local[2, 8]"),
    ],
)  # fmt: skip
def test_a_local_run_starts_a_task_again_unless_told_otherwise(given: str, used: str) -> None:
    from jobs.runtime.session import _with_retries

    assert _with_retries(given) == used


@pytest.mark.parametrize(
    ("model", "gpu", "bf16", "precision"),
    [
        ({}, True, True, "fp16"),
        ({}, False, True, "bf16"),
        ({}, False, False, "fp32"),
        ({"device": "cpu"}, True, False, "fp32"),
        ({"device": "cuda"}, False, True, "fp16"),
        ({"precision": "bf16"}, True, False, "bf16"),
        ({"backend": "onnxruntime"}, False, True, "fp32"),
        ({"backend": "stub"}, True, True, "fp32"),
    ],
)
def test_auto_precision_is_decided_once_on_the_driver(
    model: dict[str, str],
    gpu: bool,
    bf16: bool,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda: bf16)
    assert resolve_precision(ModelConfig.model_validate(model), gpu=gpu) == precision


@pytest.mark.parametrize(
    ("pairs", "rounds"), [(1, 1), (1023, 1), (2150, 2), (4000, 3), (8192, 3), (100_000, 13)]
)
def test_a_slot_gets_a_few_tasks_of_a_size_that_may_be_lost(pairs: int, rounds: int) -> None:
    from jobs.scoring.fill import _PAIRS_PER_GPU_TASK, _PAIRS_PER_TASK, _rounds

    assert _rounds(pairs, _PAIRS_PER_TASK) == rounds
    assert _rounds(10 * _PAIRS_PER_GPU_TASK, _PAIRS_PER_GPU_TASK) == 10


def test_int16_is_refused_with_what_replaces_it() -> None:
    with pytest.raises(ValueError, match=r"use fp32, or ONNX Runtime int8 \(model.backend=onnx"):
        Config.model_validate({"model": {"precision": "int16"}})
