"""Section `model`: the cross-encoder."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.config.section import PositiveInt, Section, refuse_int16
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
        "instructions, else fp32; onnxruntime has fp32 and int8, auto is fp32 there)",
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
    def _known_precision(cls, value: Any) -> Any:
        refuse_int16("model.precision", value)
        return value

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.max_length < 8:
            raise ValueError(
                f"model.max_length={self.max_length} is below 8, which leaves no room for text; "
                "raise it"
            )
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
