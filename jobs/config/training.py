"""Section `distill`: how a smaller cross-encoder is trained."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from jobs.config.section import Section

Loss = Literal["listwise_kl", "margin_mse", "contrastive", "pointwise", "lambda"]


class DistillConfig(Section):
    """What jobs.distill trains on, and how. It starts from `model.name`."""

    lists: str | None = None
    """Parquet with query, docs (array), scores or labels (array, a value a document) and split
    (`train`, else held out) [local path]"""
    layers: list[NonNegativeInt] = []
    """layers of the model that are kept, from 0, may be repeated (none: all)"""
    losses: dict[Loss, NonNegativeFloat] = {"listwise_kl": 1.0}
    """weights of the losses, LOSS=WEIGHT, may be repeated: listwise_kl and margin_mse follow the
    scores; contrastive, pointwise and lambda the labels (relevant above 0)"""
    score_scale: PositiveFloat = 1.0
    """what scores are multiplied by before they are followed"""
    batch: PositiveInt = 16
    """lists of a step"""
    epochs: PositiveFloat = 1.0
    """passes over the lists"""
    rate: PositiveFloat = 5e-5
    """highest learning rate"""
    evaluations: PositiveInt = 10
    """how often nDCG@10 of the held-out lists is measured and a checkpoint written"""
    patience: NonNegativeInt = 3
    """measurements without progress after which training ends (0: never)"""
    weights: Literal["fp32", "fp16", "float8"] = "fp32"
    """how the trained matrices are stored; transformers reads each as the precision asked for"""
    workers: NonNegativeInt = 0
    """processes that tokenise"""
    seed: Annotated[int, Field(ge=0)] = 7
    """of the order of the lists"""
