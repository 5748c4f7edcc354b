"""The first stage of an input table, where only some of its rows have one."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.evaluation.metrics import RunError, first_stage_order


def without_partial_first_stage(candidates: DataFrame) -> DataFrame:
    """Return the candidates; retrieval columns are null where neither of them is complete.

    Args:
        candidates: retrieval_score, retrieval_rank and any other columns.
    """
    try:
        first_stage_order(candidates)
    except RunError:
        nothing = F.lit(None).cast("double")
        return candidates.withColumns({"retrieval_score": nothing, "retrieval_rank": nothing})
    return candidates
