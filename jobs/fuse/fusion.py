"""Several scores of a candidate -> one, list by list, in window functions.

Reciprocal rank fusion: G. Cormack, C. Clarke, S. Buettcher, SIGIR 2009 (without weights, k is 60).
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Final

from pyspark.sql import Column, DataFrame, Window, WindowSpec
from pyspark.sql import functions as F
from pyspark.sql.types import NumericType

from jobs.config import RankingConfig
from jobs.input.columns import quoted
from jobs.input.layouts import InputTable
from jobs.runtime.errors import RefusedError

FUSED: Final = "fused_score"


def weights_of(
    config: RankingConfig, present: Sequence[str], otherwise: Sequence[str]
) -> dict[str, float]:
    """Return the weight of each score that is fused; of `otherwise`, 1, if none are named.

    Raises:
        RefusedError: if one of them is not `present`.
    """
    weights = config.fusion_scores or dict.fromkeys(otherwise, 1.0)
    if missing := [name for name in weights if name not in present]:
        raise RefusedError(
            f"ranking.fusion_scores: there is no score {', '.join(missing)}; name some of "
            f"{', '.join(present)}"
        )
    return weights


def fusion_of(
    table: InputTable, names: Mapping[str, str], config: RankingConfig
) -> tuple[dict[str, Column], dict[str, float]]:
    """Return what jobs.rerank can fuse, by its name in the ranked table, and the weights of it.

    `names` are the ranked table's of columns passed through, by `in.NAME`.

    Raises:
        RefusedError: if a score is named that is not there, or is no number.
    """
    scores, has = {"score": F.col("logit")}, table.has & {"retrieval_score", "retrieval_rank"}
    scores |= {"retrieval_score": F.col("retrieval_score")} if "retrieval_score" in has else {}
    scores |= {"retrieval_rank": -F.col("retrieval_rank")} if has else {}
    fields = table.rows.schema
    scores |= {new: quoted(name) for name, new in names.items()
               if isinstance(fields[name].dataType, NumericType)}  # fmt: skip
    first_stage = "retrieval_rank" if has == {"retrieval_rank"} else "retrieval_score"
    return scores, weights_of(config, list(scores), ["score", first_stage])


def with_fused_score(
    rows: DataFrame,
    scores: Mapping[str, Column],
    weights: Mapping[str, float],
    config: RankingConfig,
    lists: Sequence[Column],
    tie: Sequence[Column],
) -> DataFrame:
    """Add `fused_score`, float32 as evaluations hold scores; higher is better.

    With `rrf` it is the sum of weight / (fusion_k + rank), else of weight * normalised score. A
    score that is missing, NaN or infinite adds nothing to `rrf` and `rank`; else it counts as the
    lowest of its list, which `minmax` makes 0. Where all scores of a list are equal, `minmax` and
    `zscore` make them 0. What has none of the scores comes below all others of its list, in
    first-stage order, in steps of 1.

    Args:
        rows: the candidates of whole lists, before any is cut.
        scores: numbers by name, higher is better.
        weights: of those that are fused.
        config: `fusion`, `fusion_normalise` and `fusion_k`.
        lists: columns that make a list.
        tie: total order of equal scores.
    """
    values, parts, same_list = [], [], Window.partitionBy(*lists)
    for name, weight in weights.items():
        number = scores[name].cast("double")
        values.append(F.when(F.abs(number) < F.lit(float("inf")), number))  # NaN is above it
        part = _part(values[-1], same_list.orderBy(F.desc_nulls_last(values[-1]), *tie), config)
        parts.append(F.lit(weight) * F.coalesce(part, F.lit(0.0)))
    total = F.when(F.isnotnull(F.coalesce(*values)), reduce(add, parts, F.lit(0.0)))
    rows = rows.withColumn(FUSED, total.cast("float"))
    first_stage = [F.asc_nulls_last("retrieval_rank"), F.desc_nulls_last("retrieval_score"), *tie]
    below = F.row_number().over(same_list.orderBy(F.desc_nulls_first(FUSED), *first_stage))
    lowest = F.coalesce(F.min(FUSED).over(same_list), F.lit(0.0))
    return rows.withColumn(FUSED, F.coalesce(FUSED, lowest - below).cast("float"))


def _part(value: Column, ordered: WindowSpec, config: RankingConfig) -> Column:
    """Return what a score adds, without its weight; null where it adds nothing."""
    rank = F.when(F.isnotnull(value), F.row_number().over(ordered))
    if config.fusion == "rrf":
        return F.lit(1.0) / (F.lit(config.fusion_k) + rank)
    # The frame is ordered, so that sums are the same whatever the order of the rows.
    whole = ordered.rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    if config.fusion_normalise == "rank":
        return F.lit(1.0) - (rank - 1) / F.count(value).over(whole)
    low = F.min(value).over(whole)
    given = F.coalesce(value, low)
    if config.fusion_normalise == "none":
        return given
    if config.fusion_normalise == "minmax":
        zero, unit = low, F.max(value).over(whole) - low
    else:
        zero, unit = F.avg(value).over(whole), F.stddev_pop(value).over(whole)
    return F.when(unit > 0, (given - zero) / unit)
