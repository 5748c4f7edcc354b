"""Sections `distill` and `export`: how a smaller cross-encoder is trained, and on what."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from jobs.config.section import Section, Share

Loss = Literal["listwise_kl", "margin_mse", "contrastive", "pointwise", "lambda"]


class DistillConfig(Section):
    """What jobs.distill trains on, and how. It starts from `model.name`."""

    lists: str | None = None
    """Parquet with query, docs (array), scores or labels (array, a value a document) and split
    (`train`, else held out) [local path]"""
    layers: list[NonNegativeInt] = []
    """layers of the model that are kept, from 0, may be repeated (none: all)"""
    vocabulary: Literal["whole", "seen"] = "whole"
    """pieces of the model's vocabulary that are kept: all, or those that the lists need (of Unigram
    and WordPiece), which makes a multilingual model much smaller"""
    losses: dict[Loss, NonNegativeFloat] = {"listwise_kl": 1.0}
    """weights of the losses, LOSS=WEIGHT, may be repeated: listwise_kl and margin_mse follow the
    scores; contrastive, pointwise and lambda the labels (relevant above 0)"""
    score_scale: PositiveFloat = 1.0
    """what scores are multiplied by before they are followed"""
    batch: PositiveInt = 16
    """lists of a step"""
    processes: PositiveInt = 1
    """processes that share the lists of a step, one a GPU where there are GPUs"""
    cluster: bool = False
    """whether they are tasks of spark.master's cluster (Spark's TorchDistributor) and not of this
    machine; all have to see distill.lists, model.name and output.path under the same paths"""
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
    register_as: str = ""
    """name in MLflow's model registry that the model becomes a version of, NAME or NAME@ALIAS,
    which jobs.rerank takes as model.name=models:/NAME@ALIAS (empty: none)"""

    @field_validator("register_as")
    @classmethod
    def _name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[^/:@\s]+(@[A-Za-z][\w-]*)?", value):
            raise ValueError(
                f"distill.register_as={value} is no name of a registered model; give NAME or "
                "NAME@ALIAS, without slashes and colons"
            )
        return value


class ExportConfig(Section):
    """Training sets that jobs.export makes of a ranked table: positives are documents with a label,
    negatives others that the model ranks high, but not too high."""

    format: Literal["labeled-list", "labeled-pair", "triplet", "n-tuple", "flagembedding"] = (
        "labeled-list"
    )
    """Parquet as mine_hard_negatives of sentence-transformers makes it (jobs.distill takes
    labeled-list), or JSON lines of FlagEmbedding"""
    targets: list[Literal["labels", "scores"]] = ["labels", "scores"]
    """what is written beside the texts, may be repeated: labels (of lists and pairs), the teacher's
    scores. jobs.distill takes both; sentence-transformers trains on one"""
    label: str = "label"
    """column of the ranked table with the grades, unless evaluation.qrels is set"""
    positive: PositiveInt = 1
    """lowest grade of a positive"""
    rank: Literal["rank", "retrieval_rank"] = "rank"
    """which rank rank_min and rank_max are about"""
    rank_min: PositiveInt = 1
    """first rank that negatives are taken from"""
    rank_max: PositiveInt = 200
    """last rank that negatives are taken from"""
    absolute_margin: NonNegativeFloat | None = None
    """how far a negative is below the lowest positive of its query, at least [logit]"""
    relative_margin: NonNegativeFloat | None = 0.05
    """the same as a share of the size of that positive's logit [share]"""
    max_score: float | None = None
    """logit above which a document without a label is taken for relevant, and left out [logit]"""
    duplicates: Share = 0.8
    """share of common 5-character pieces from which on a negative repeats a positive, or another
    negative, and is left out (1: only equal texts)"""
    negatives: PositiveInt = 8
    """most negatives of a query; n-tuple leaves out queries with fewer"""
    sampling: Literal["top", "random"] = "top"
    """which ones: those with the highest scores, or any"""
    held_out: Share = 0.05
    """share of the queries that is not trained on, by a hash of their text [share 0-1]"""
    seed: Annotated[int, Field(ge=0)] = 7
    """of random sampling"""

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.rank_min > self.rank_max:
            raise ValueError(
                f"export.rank_min={self.rank_min} is after export.rank_max={self.rank_max}"
            )
        if not self.targets:
            raise ValueError("export.targets is empty; name labels, scores or both")
        return self
