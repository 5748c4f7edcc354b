"""How tests.benchmark.bench and jobs.tune measure."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from jobs.config.section import PositiveInt, Section, Share
from udfs.spec import PRECISIONS

Way = Literal[
    "engine", "job", "sentence_transformers", "flagembedding", "predict_batch_udf", "tokenizer",
    "peak",
]  # fmt: skip
Mix = Literal["given", "short", "web", "long", "skewed"]


class BenchConfig(Section):
    """How the benchmark measures."""

    ways: list[Way] = Field(
        [way for way in get_args(Way) if way != "tokenizer"],
        description="what is measured, may be repeated: this engine in process, this engine "
        "through the job, two libraries, Spark's predict_batch_udf around the first, the model's "
        "tokenizer alone, and the device's matrix products",
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
    shape: Literal["minilm-l6", "bge-reranker-base", "bge-reranker-v2-m3"] | None = Field(
        None, description="a model of this shape with random weights, instead of model.name"
    )


class TuneConfig(Section):
    """What jobs.tune measures, and what it may recommend. Empty lists: from device and lengths."""

    seconds: Annotated[float, Field(gt=0)] = Field(
        240.0, description="time for measuring; every setting once, then the best ones again [s]"
    )
    pairs: Annotated[int, Field(ge=0)] = Field(
        0, description="pairs measured on, of whole queries (0: 320 on a CPU, 4096 on a GPU)"
    )
    candidates: Annotated[int, Field(ge=2)] = Field(
        16, description="candidates per query, more if there are too few queries [pairs]"
    )
    seed: int = Field(0, description="which queries and candidates are drawn")
    precisions: list[str] = Field(
        [],
        description="precisions to try, or BACKEND:PRECISION such as onnxruntime:int8, may be "
        "repeated",
    )
    max_lengths: list[PositiveInt] = Field(
        [], description="values of model.max_length to try, may be repeated [tokens]"
    )
    max_tokens: list[PositiveInt] = Field(
        [], description="values of batching.max_tokens to try, may be repeated [tokens]"
    )
    max_pairs: list[PositiveInt] = Field(
        [1, 8, 32, 128],
        description="values of batching.max_pairs to try, may be repeated [pairs]",
    )
    min_tau: Annotated[float, Field(ge=-1.0, le=1.0)] = Field(
        0.9,
        description="least agreement with float32 at the longest max_length that is recommended "
        "[Kendall's tau]",
    )
    max_loss: Share = Field(
        0.005, description="largest loss of nDCG@10 against it that is recommended"
    )

    @model_validator(mode="after")
    def _precisions_are_some(self) -> TuneConfig:
        known = [*PRECISIONS["torch"], *(f"onnxruntime:{p}" for p in PRECISIONS["onnxruntime"])]
        if unknown := sorted(set(self.precisions) - set(known)):
            raise ValueError(
                f"tune.precisions={', '.join(unknown)}: unknown; use {', '.join(known)}"
            )
        return self
