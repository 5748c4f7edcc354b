"""The configuration of the benchmark: that of the jobs, and a section of its own."""

from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveInt

from jobs.config import Config
from jobs.config.section import Section

Way = Literal[
    "engine", "job", "sentence_transformers", "sentence_transformers_bf16", "flagembedding",
    "predict_batch_udf", "sentence_transformers_onnx",
    "sentence_transformers_openvino",
]  # fmt: skip
Mix = Literal["given", "short", "web", "long", "skewed"]


class BenchConfig(Section):
    """How the benchmark measures."""

    ways: list[Way] = Field(
        list(get_args(Way)[:6]),
        description="what is measured, may be repeated: this engine in process, this engine "
        "through the job, two libraries (one also in bf16, with ONNX Runtime and with OpenVINO), "
        "and Spark's predict_batch_udf around the first",
    )
    mixes: list[Mix] = Field(
        ["given"],
        description="lengths of the pairs, may be repeated: those of input.path, or made-up ones "
        "with a median of 40, 100 or 430 tokens, or 90% short and 10% at model.max_length",
    )
    pairs: Annotated[int, Field(ge=0)] = Field(
        0, description="pairs of a mix (0: all of input.path, 1,000 of a made-up mix) [pairs]"
    )
    rounds: PositiveInt = Field(3, description="times each way is run, in turn [runs]")
    shape: Literal["tiny", "minilm-l6", "bge-reranker-base", "bge-reranker-v2-m3"] | None = Field(
        None, description="a model of this shape with random weights, instead of model.name"
    )


class BenchmarkConfig(Config):
    """What the benchmark needs to know."""

    bench: BenchConfig = BenchConfig()
