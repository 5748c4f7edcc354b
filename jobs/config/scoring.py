"""What scores: the model, its batches, and where it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.section import PositiveInt, Section
from udfs.spec import PRECISIONS


class ModelConfig(Section):
    """Which cross-encoder, and how it reads a pair."""

    name: str | None = Field(
        None, description="local folder, hub id, models:/ URI, or `embedded` for the small sample"
    )
    revision: str | None = Field(None, description="commit of a hub id [40 hex digits]")
    max_length: PositiveInt = Field(512, description="longest pair the model is given [tokens]")
    truncation: Literal["longest_first", "passage"] = Field(
        "longest_first",
        description="what is cut of a longer pair: the longer side first (sentence-transformers), "
        "or the passage only with the query held to 3/4 of max_length (FlagEmbedding)",
    )
    precision: Literal["auto", "fp16", "bf16", "fp32", "int8"] = Field(
        "auto",
        description="number type of the model (auto: fp16 on CUDA, bf16 on CPUs that have the "
        "instructions, else fp32; int8 and fp32 are those of onnxruntime, auto is fp32 there)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPU Spark gave the task, else the first one, else the CPU"
    )
    backend: Literal["torch", "onnxruntime", "tokenizer", "stub"] = Field(
        "torch",
        description="what runs the model; onnxruntime is for CPUs without bf16 instructions; "
        "tokenizer and stub, which time the rest of a job, score by a checksum of tokens or texts",
    )
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto", description="attention kernel (auto: sdpa where the model has it)"
    )
    query_instruction: str = Field("", description="text put before every query")
    doc_instruction: str = Field("", description="text put before every document")
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model; off unless you read it"
    )
    ship: Literal["path", "archive"] = Field(
        "path",
        description="how executors reach the model: a path they share, or an archive sent by Spark",
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _no_int16(cls, value: object) -> object:
        if value == "int16":
            raise ValueError(
                "model.precision=int16 is no longer supported; use fp32, or ONNX Runtime int8 "
                "(model.backend=onnxruntime model.precision=int8)"
            )
        return value

    @model_validator(mode="after")
    def _long_enough(self) -> ModelConfig:
        if self.max_length < 8:
            raise ValueError(
                f"model.max_length={self.max_length} is below 8, which leaves no room for text; "
                "raise it"
            )
        return self

    @model_validator(mode="after")
    def _backend_can(self) -> ModelConfig:
        precisions = ("auto", *PRECISIONS[self.backend])
        if self.precision not in precisions:
            raise ValueError(
                f"model.precision={self.precision} is none of model.backend={self.backend}; use "
                f"{', '.join(precisions)}, or another backend"
            )
        if self.backend == "onnxruntime" and self.device == "cuda":
            raise ValueError(
                "model.backend=onnxruntime scores on CPUs only; leave model.device=cuda out, or "
                "use model.backend=torch"
            )
        return self


class BatchingConfig(Section):
    """How much is scored at once."""

    max_tokens: PositiveInt = Field(4096, description="padded size of one batch [tokens]")
    max_pairs: PositiveInt = Field(512, description="rows of one batch [pairs]")
    window: PositiveInt = Field(
        1024, description="pairs a worker holds and sorts by length before batching [pairs]"
    )
    partitions: Annotated[int, Field(ge=0)] = Field(
        0, description="scoring tasks (0: from the number of pairs and task slots) [tasks]"
    )
    timeout: Annotated[float, Field(ge=0)] = Field(
        600.0,
        description="longest time for one batch; a worker that takes longer hangs: it ends, and "
        "Spark starts its task again (0: wait for ever) [s]",
    )


class ScoringConfig(Section):
    """Executors that score, where they are to differ from those that read and rank (stage-level
    scheduling). Needs a cluster with dynamic allocation.
    """

    gpus: PositiveInt | None = Field(
        None, description="GPUs of such an executor, each with one model (unset: no such executors)"
    )
    cores: PositiveInt = Field(
        4, description="its cores, one for each task; the tasks share out its GPUs [cores]"
    )
    memory: str = Field("4g", description="its JVM's heap [bytes, or with k, m, g]")
    memory_overhead: str = Field(
        "8g", description="its memory beside the heap: model, torch, CUDA [bytes, or with k, m, g]"
    )
    discovery_script: str = Field(
        "", description="script on the executors that lists their GPUs as Spark wants it [path]"
    )
    vendor: str = Field("", description="vendor of the GPUs, for Kubernetes, e.g. nvidia.com")


class SparkConfig(Section):
    """The session."""

    master: str = Field("local[*]", description="for a local run; spark-submit's master wins")
    app_name: str = Field("spark-rerank", description="application's name")
    settings: dict[str, str] = Field(
        {}, description="further Spark settings, KEY=VALUE, may be repeated"
    )
