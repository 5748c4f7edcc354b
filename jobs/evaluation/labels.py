"""Scores -> grades, by the rules of section `label`.

Every rule comes down to cuts: the grade is the number of them that a logit reaches. A fitted
probability never falls as the logit rises, so its thresholds are cuts as well.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.config import LabelConfig, RankingConfig
from jobs.input.columns import quoted
from jobs.input.layouts import PASS_THROUGH, InputTable
from jobs.input.selection import day_of
from jobs.ranking import COLUMNS, output_names
from jobs.runtime.errors import RefusedError

_FITTED: Final = ("isotonic", "platt")
_SEPARATED: Final = 0.75  # share of pairs in order, below which a warning says so
_FEW: Final = 10  # judged documents of a grade
_BEYOND: Final = 1e9  # of all logits: JSON has no infinity
_ALL: Final = ""  # the day of a rule that is the same for all days


@dataclass(frozen=True)
class Grades:
    """Call it with a ranked table to add the column of grades (int).

    Attributes:
        config: the rule.
        day: column of the ranked table that `cuts` are told apart by, None if they are not.
        cuts: rising logits by day.
        separation: of the judged documents of each two neighbouring grades: `lower`, `higher`,
            their `documents`, and the share of pairs that the scores have `in_order`.
        warnings: what a user of the grades has to know.
    """

    config: LabelConfig
    day: str | None = None
    cuts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    separation: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()

    def __call__(self, ranked: DataFrame) -> DataFrame:
        """Return the table with the grades as its last column."""
        logit = F.col("score").cast("double")
        grade = F.size(F.filter(self._cuts(), lambda cut: logit >= cut))
        return ranked.withColumn(self.config.column, grade)

    def _cuts(self) -> Column:
        arrays = {day: F.array(*map(F.lit, cuts)) for day, cuts in self.cuts.items()}
        if self.day is None:
            return arrays.get(_ALL, F.array()).cast("array<double>")
        pairs = [part for day, cuts in arrays.items() for part in (F.lit(day), cuts)]
        by_day = F.create_map(*pairs).cast("map<string,array<double>>")
        return by_day[F.coalesce(day_of(quoted(self.day)), F.lit(_ALL))]

    def record(self, ranked: DataFrame) -> dict[str, Any]:
        """Return the section `labels` of run.json: cuts, and shares of the rows by grade."""
        column = quoted(self.config.column)
        counts = dict(map(tuple, ranked.groupBy(column).count().orderBy(column).collect()))
        total = sum(counts.values())
        cuts = {day: [min(max(cut, -_BEYOND), _BEYOND) for cut in cuts]
                for day, cuts in sorted(self.cuts.items())}  # fmt: skip
        return {
            "column": self.config.column, "scale": self.config.scale,
            "cuts": cuts if self.day else cuts.get(_ALL),
            "shares": {str(grade): round(n / total, 6) for grade, n in counts.items()},
            "separation": list(self.separation), "warnings": list(self.warnings),
        }  # fmt: skip


def refuse_labels(
    config: LabelConfig, ranking: RankingConfig, pairs: InputTable, *, judged: bool
) -> None:
    """Refuse a rule that the input or the environment does not allow.

    Raises:
        RefusedError: a column that is taken, no judgements to fit to, or scikit-learn missing.
    """
    if not config.thresholds:
        return
    taken = {
        *COLUMNS,
        *output_names(pairs.rows.columns, ranking).values(),
        *({"label"} & pairs.has),
    }
    if config.column in taken:
        raise RefusedError(
            f"label.column={config.column} is a column of the ranked table already; name another "
            "one, or set input.label to '' to go without the input's labels"
        )
    if config.scale in _FITTED and not judged:
        raise RefusedError(
            f"label.scale={config.scale} is fitted to judgements; set evaluation.qrels, or "
            "input.label to a column of grades"
        )
    if config.scale in _FITTED and importlib.util.find_spec("sklearn") is None:
        raise RefusedError(
            f"label.scale={config.scale} needs scikit-learn; pip install 'spark-rerank[labels]'"
        )


def make_grades(
    config: LabelConfig,
    ranking: RankingConfig,
    table: InputTable,
    scored: DataFrame,
    qrels: DataFrame | None,
) -> Grades | None:
    """Find the cuts; None without a rule.

    Args:
        config: the rule.
        ranking: names of the ranked table's columns follow from it.
        table: the input; `date` of its configuration tells days apart.
        scored: query_id, doc_id, logit and `in.*`.
        qrels: query_id, doc_id, relevance; None: nothing is known of separation.

    Raises:
        RefusedError: if there is nothing to fit to.
    """
    if not config.thresholds:
        return None
    judged = None if qrels is None else _judged(scored, qrels)
    separation = [] if judged is None else separate(judged)
    warnings = [_said(row) for row in separation
                if row["in_order"] < _SEPARATED or min(row["documents"]) < _FEW]  # fmt: skip
    cuts: dict[str, list[float]]
    day, date = None, table.config.date
    if config.scale == "quantile":
        day = output_names(table.rows.columns, ranking)[PASS_THROUGH + date] if date else None
        cuts = _quantiles(config, scored, PASS_THROUGH + date if date else None)
    elif config.scale == "probability":
        cuts = {_ALL: [math.log(p / (1 - p)) for p in config.thresholds]}
    elif config.scale == "logit":
        cuts = {_ALL: list(config.thresholds)}
    else:
        assert judged is not None  # or it was refused
        cuts = {_ALL: fitted_cuts(config, judged)}
        if never := cuts[_ALL].count(math.inf):
            least = config.thresholds[-never]
            warnings.append(
                f"No score is as good as label.thresholds={least}: its grade is not given."
            )
    return Grades(config, day, cuts, separation, warnings)


def fitted_cuts(config: LabelConfig, judged: pd.DataFrame) -> list[float]:
    """Return the least logit at which a document is relevant with each probability.

    isotonic: Zadrozny and Elkan 2002, linear between the steps. platt: Platt 1999 with his targets
    (N+ + 1) / (N+ + 2) and 1 / (N- + 2), as weights of both outcomes. Infinite where none is.
    """
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    x, y = judged["logit"].to_numpy(float), (judged["relevance"] >= config.relevant).to_numpy()
    n = judged["documents"].to_numpy(float)
    good, bad = n[y].sum(), n[~y].sum()
    if not (good and bad):
        raise RefusedError(
            f"label.scale={config.scale} has nothing to fit to: of {good + bad:,.0f} judged "
            f"documents with a score {good:,.0f} are relevant (label.relevant={config.relevant}); "
            "give judgements of both kinds"
        )
    if config.scale == "platt":
        targets = np.where(y, (good + 1) / (good + 2), 1 / (bad + 2))
        both, outcome = np.concatenate([x, x])[:, None], np.repeat([1, 0], len(x))
        model = LogisticRegression(C=1e6, max_iter=1000)
        model.fit(both, outcome, sample_weight=np.concatenate([n * targets, n * (1 - targets)]))
        slope, shift = model.coef_[0, 0], model.intercept_[0]
        if slope > 0:
            return [(math.log(p / (1 - p)) - shift) / slope for p in config.thresholds]
        xs, ys = np.array([x.min()]), np.array([good / n.sum()])  # a higher score says nothing
    else:
        isotonic = IsotonicRegression().fit(x, y, sample_weight=n)
        xs, ys = isotonic.X_thresholds_, isotonic.y_thresholds_
    return [_inverse(xs, ys, threshold) for threshold in config.thresholds]


def _inverse(xs: np.ndarray, ys: np.ndarray, value: float) -> float:
    """Where a rising line through points first reaches a value."""
    at = int(np.searchsorted(ys, value))  # the first point that does
    if at == len(ys):
        return math.inf
    if at == 0:
        return -math.inf
    share = (value - ys[at - 1]) / (ys[at] - ys[at - 1])
    return float(xs[at - 1] + share * (xs[at] - xs[at - 1]))


def separate(judged: pd.DataFrame) -> list[dict[str, Any]]:
    """Return `Grades.separation`: for neighbouring grades the area under the ROC curve.

    `judged`: logit, relevance, documents. It is Mann and Whitney's U over all pairs of a document
    of the lower and one of the higher grade; a tie counts half.
    """
    found = []
    counts = judged.pivot_table("documents", "logit", "relevance", aggfunc="sum", fill_value=0)
    for lower, higher in pairwise(counts.columns):
        low, high = counts[lower].to_numpy(float), counts[higher].to_numpy(float)
        below = low.cumsum() - low / 2
        found.append({
            "lower": int(lower), "higher": int(higher),
            "documents": [int(low.sum()), int(high.sum())],
            "in_order": round(float(high @ below / (low.sum() * high.sum())), 4),
        })  # fmt: skip
    return found


def _said(row: Mapping[str, Any]) -> str:
    low, high = row["documents"]
    return (
        f"Scores do not clearly separate grade {row['higher']} from grade {row['lower']}: of two "
        f"judged documents that of grade {row['higher']} has the higher score in "
        f"{row['in_order']:.0%} of the cases ({high:,} and {low:,} documents)."
    )


def _judged(scored: DataFrame, qrels: DataFrame) -> pd.DataFrame:
    """Count the judged documents by logit, exact to 0.0001, and grade: few rows for the driver."""
    pairs = scored.select("query_id", "doc_id", "logit").distinct()
    logit = F.round(F.col("logit").cast("double"), 4).alias("logit")
    rows = pairs.join(qrels, on=["query_id", "doc_id"]).groupBy(logit, "relevance")
    counts = rows.agg(F.count(F.lit(1)).alias("documents"))
    return counts.orderBy("logit", "relevance").toPandas()


def _quantiles(config: LabelConfig, scored: DataFrame, date: str | None) -> dict[str, list[float]]:
    """Quantiles of the scores by day, exact to 0.001: so rounded, few values are held."""
    day = F.coalesce(day_of(quoted(date)), F.lit(_ALL)) if date else F.lit(_ALL)
    score = F.round(F.col("logit").cast("double"), 3)
    found = scored.groupBy(day.alias("day")).agg(F.percentile(score, config.thresholds))
    return {str(name): list(cuts) for name, cuts in found.collect()}
