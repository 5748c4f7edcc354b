"""Section `tune`: what jobs.tune measures."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from jobs.config.section import PositiveInt, Section, Share, refuse_int16

#: Values of `tune.precisions`: of torch, or BACKEND:PRECISION.
ENGINES = ("fp32", "fp16", "bf16", "onnxruntime:fp32", "onnxruntime:int8")


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
    def _known_precisions(self) -> Self:
        refuse_int16("tune.precisions", *self.precisions)
        if unknown := sorted(set(self.precisions) - set(ENGINES)):
            raise ValueError(
                f"tune.precisions={', '.join(unknown)}: unknown; use {', '.join(ENGINES)}"
            )
        return self
