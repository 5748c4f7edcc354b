"""Sections `ranked` and `evaluation`: what is measured, and by what."""

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from jobs.config.section import Section, Share


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
        description="measures by the names of ir_measures, means over queries, may be repeated",
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
    min_queries: Annotated[int, Field(ge=0)] = Field(
        5,
        description="queries with a judged candidate that a rule's value must rest on, else the "
        "rule fails; of fewer than 5 a single one is more than a fifth of the value, and no "
        "difference can be significant [queries]",
    )
    min_judged: Share = Field(
        0.01,
        description="share of the first ten documents of a list that must be judged on average, "
        "else a rule fails; with one judgement per query, found each time, it is 0.1 [share 0-1]",
    )
    slices: list[str] = Field(
        [],
        description="column with one value per query, or a number, to split the result by, may "
        "be repeated",
    )

    @field_validator("metrics", "gate", mode="before")
    @classmethod
    def _whole(cls, values: Any) -> Any:
        """Put together what a command line split at a comma: `f(a=1,b=2)`, and `0,3` to refuse."""
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            return values
        whole: list[str] = []
        for value in values:
            opened = whole and whole[-1].count("(") > whole[-1].count(")")
            if opened or (whole and re.fullmatch(r"\s*\d+\s*(\(significant\))?\s*", value)):
                whole[-1] += f",{value}"
            else:
                whole.append(value)
        return whole
