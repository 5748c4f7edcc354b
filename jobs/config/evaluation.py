"""Sections `ranked` and `evaluation`: what is measured, and by what."""

from typing import Annotated

from pydantic import Field

from jobs.config.section import Section


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
