"""What comes of it: the order, its measures, the report, and where they are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jobs.config.section import Age, PositiveInt, Section


class RankingConfig(Section):
    """What is kept of each query's order."""

    top_k: PositiveInt | None = Field(None, description="ranks kept per query (unset: all) [rows]")
    min_score: float | None = Field(None, description="lowest logit kept (unset: all) [logit]")
    tie_break: Literal["doc_id_desc", "doc_id_asc"] = Field(
        "doc_id_desc", description="order of equal scores; doc_id_desc is trec_eval's"
    )


class RankedConfig(Section):
    """The ranked tables that jobs.evaluate reads."""

    path: list[str] = Field(
        [],
        description="ranked table, PATH or NAME=PATH, may be repeated: the first is judged, the "
        "others are compared with it [path or URI]",
    )


class EvaluationConfig(Section):
    """What the order is measured by. Labels come from the table's label unless qrels is set."""

    qrels: str | None = Field(None, description="TREC or BEIR qrels file, or a table [path or URI]")
    metrics: list[str] = Field(
        ["nDCG@10", "RR@10", "Success@1", "Judged@10"],
        description="measures in ir_measures' notation, may be repeated",
    )
    baseline: str | None = Field(
        None,
        description="what to compare with beside the first stage: a name or path of a ranked "
        "table, or mlflow:EXPERIMENT for the latest passing run there",
    )
    gate: list[str] = Field(
        [],
        description="rule that must hold, else exit code 4, e.g. 'nDCG@10 >= 0.6', "
        "'nDCG@10 delta >= 0', 'nDCG@10 vs baseline >= -0.005 (significant)', "
        "'p95_ms_per_pair <= 20', may be repeated",
    )
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.05, description="chance of a false alarm for rules marked (significant) [share 0-1]"
    )
    slices: list[str] = Field(
        [],
        description="column with one value per query, or a number, to split the result by, may "
        "be repeated",
    )


class ReportConfig(Section):
    """The report, one HTML file."""

    examples: Annotated[int, Field(ge=0)] = Field(
        0,
        description="queries shown with their texts, before and after; texts stay out of the "
        "report unless asked for [queries]",
    )


class StoreConfig(Section):
    """Where scores are kept. Runs that share a store share their work."""

    path: str | None = Field(None, description="score store (unset: OUT/scores) [path or URI]")
    older_than: Age = Field(
        "30d",
        description="jobs.store gc: scores of a fingerprint not used for so long are dropped "
        "[minutes m, hours h, days d]",
    )
    settled: Age = Field(
        "6h",
        description="jobs.store compact, gc: what was used or changed more recently is left "
        "alone; longer than any run takes [minutes m, hours h, days d]",
    )
    tolerance: Annotated[float, Field(ge=0.0)] = Field(
        0.05, description="jobs.store verify: how far two scores of one pair may differ [logit]"
    )


class OutputConfig(Section):
    """Where results go."""

    path: str | None = Field(None, description="output folder [path or URI]")
    format: Literal["parquet", "orc", "json", "csv"] = Field(
        "parquet", description="format of the ranked table and the rejects"
    )
    partitions: Annotated[int, Field(ge=0)] = Field(
        0, description="files of the ranked table (0: from its size) [files]"
    )


class MlflowConfig(Section):
    """Tracking. Only the driver talks to it, after the data is written."""

    enabled: bool = Field(True, description="log the run")
    tracking_uri: str | None = Field(
        None, description="MLflow server or database (unset: MLFLOW_TRACKING_URI, else mlflow.db)"
    )
    experiment: str = Field("spark-rerank", description="experiment's name")
    run_name: str | None = Field(None, description="run's name (unset: MLflow chooses one)")
    timeout: Annotated[float, Field(gt=0)] = Field(
        30.0, description="longest that logging may hold up the end of the job [s]"
    )
