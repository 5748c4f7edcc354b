"""Sections `ranking`, `label`, `ranked`, `evaluation`, `report` and `mlflow`."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from jobs.config.section import Section, Share


class RankingConfig(Section):
    """What is kept of each query's order."""

    top_k: PositiveInt | None = None
    """ranks kept per query (unset: all) [rows]"""
    min_score: float | None = None
    """lowest logit kept (unset: all) [logit]"""
    tie_break: Literal["doc_id_desc", "doc_id_asc"] = "doc_id_desc"
    """order of equal scores; doc_id_desc is trec_eval's"""


class LabelConfig(Section):
    """Grades made of scores. None are made unless thresholds are set."""

    thresholds: list[float] = []
    """least value of grade 1, of grade 2 and so on, rising; below the first is grade 0"""
    by: Literal["logit", "probability", "quantile", "isotonic", "platt"] = "probability"
    """what thresholds are: logits; probabilities (the logit's sigmoid); shares of the scores of a
    date (without input.date of the run) that lie below; or probabilities of being relevant, fitted
    to the judged documents of the run"""
    column: str = "label"
    """column of the ranked table that holds the grades"""
    relevant: PositiveInt = 1
    """isotonic, platt: lowest judgement that counts as relevant [grade]"""

    @model_validator(mode="after")
    def _thresholds(self) -> Self:
        shown = ", ".join(map(str, self.thresholds))
        if any(low >= high for low, high in pairwise(self.thresholds)):
            raise ValueError(f"label.thresholds={shown} do not rise; order them")
        if self.by != "logit" and not all(0 < value < 1 for value in self.thresholds):
            raise ValueError(
                f"label.thresholds={shown}: with label.by={self.by} they lie between 0 and 1; "
                "change them, or set label.by=logit"
            )
        return self


class RankedConfig(Section):
    """The ranked tables that jobs.evaluate and jobs.export read."""

    path: list[str] = []
    """ranked table, PATH or NAME=PATH, may be repeated: the first is judged, the others are
    compared with it; jobs.export takes one [path or URI]"""


class EvaluationConfig(Section):
    """What the order is measured by. Labels come from the table's label unless qrels is set."""

    qrels: str | None = None
    """TREC or BEIR qrels file, or a table [path or URI]"""
    metrics: list[str] = ["nDCG@10", "RR@10", "Success@1", "Judged@10"]
    """measures by the names of ir_measures, means over queries, may be repeated"""
    baseline: str | None = None
    """what to compare with beside the first stage: a name or path of a ranked table, or
    mlflow:EXPERIMENT for the latest passing run there"""
    gate: list[str] = []
    """rule that must hold, else exit code 4, e.g. 'nDCG@10 >= 0.6', 'nDCG@10 delta >= 0', 'nDCG@10
    vs baseline >= -0.005 (significant)', 'p95_ms_per_pair <= 20', may be repeated"""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """chance of a false alarm for rules marked (significant) [share 0-1]"""
    min_queries: NonNegativeInt = 5
    """queries with a judged candidate that a rule's value must rest on, else the rule fails; of
    fewer than 5 a single one is more than a fifth of the value, and no difference can be
    significant [queries]"""
    min_judged: Share = 0.01
    """share of the first ten documents of a list that must be judged on average, else a rule fails;
    with one judgement per query, found each time, it is 0.1 [share 0-1]"""
    slices: list[str] = []
    """column with one value per query, or a number, to split the result by, may be repeated"""


class ReportConfig(Section):
    """The report, one HTML file."""

    examples: NonNegativeInt = 0
    """queries shown with their texts, before and after; texts stay out of the report unless asked
    for [queries]"""


class MlflowConfig(Section):
    """Tracking. Only the driver talks to it: before the work to check, after it to log."""

    enabled: bool = True
    """log the run"""
    tracking_uri: str | None = None
    """MLflow server or database (unset: MLFLOW_TRACKING_URI, else mlflow.db)"""
    experiment: str = "spark-rerank"
    """experiment's name"""
    run_name: str | None = None
    """run's name (unset: MLflow chooses one)"""
    timeout: PositiveFloat = 30.0
    """longest that logging or a baseline may take; a local database has at least 300 [s]"""
