"""Rules that make grades of scores, against scikit-learn's own predictions and plain counting."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from jobs.config import LabelConfig
from jobs.evaluation.labels import fitted_cuts, separate
from jobs.runtime.errors import RefusedError


def judged(size: int, slope: float, seed: int = 1) -> pd.DataFrame:
    """Logits, and grades 0 to 2 that rise with them."""
    generator = np.random.default_rng(seed)
    logit = generator.normal(0, 3, size).astype(np.float32)
    chance = 1 / (1 + np.exp(-(slope * logit - 0.5)))
    grade = (generator.random(size) < chance).astype(int) * generator.integers(1, 3, size)
    return pd.DataFrame({"logit": logit, "relevance": grade, "documents": 1})


def rule(on: str, *thresholds: float) -> LabelConfig:
    return LabelConfig(scale=on, thresholds=list(thresholds))  # type: ignore[arg-type]


def test_isotonic_cuts_are_where_its_prediction_reaches_the_threshold() -> None:
    rows = judged(500, 0.8)
    thresholds = [0.2, 0.5, 0.8]
    cuts = fitted_cuts(rule("isotonic", *thresholds), rows)
    model = IsotonicRegression(out_of_bounds="clip")
    model.fit(rows["logit"].astype(float), rows["relevance"] >= 1)
    points = np.linspace(-9, 9, 2001)
    for cut, threshold in zip(cuts, thresholds, strict=True):
        apart = np.abs(points - cut) > 1e-6
        reached = model.predict(points) >= threshold
        assert (reached == (points >= cut))[apart].all()


def test_platt_cuts_are_those_of_his_targets() -> None:
    """Minimised once more, by scipy."""
    from scipy.optimize import minimize

    rows = judged(400, 1.2)
    x, y = rows["logit"].to_numpy(float), (rows["relevance"] >= 1).to_numpy()
    targets = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))

    def loss(parameters: np.ndarray) -> float:
        z = parameters[0] * x + parameters[1]
        return float((np.logaddexp(0, z) - targets * z).sum())

    slope, shift = minimize(loss, np.array([0.5, 0.0]), tol=1e-10).x
    (cut,) = fitted_cuts(rule("platt", 0.7), rows)
    assert cut == pytest.approx((math.log(0.7 / 0.3) - shift) / slope, abs=1e-3)


@pytest.mark.parametrize("on", ["platt", "isotonic"])
def test_scores_that_fall_with_relevance_give_no_grade_above_the_base_rate(on: str) -> None:
    rows = judged(400, -1.0)
    share = (rows["relevance"] >= 1).mean()
    low, high = fitted_cuts(rule(on, share - 0.05, share + 0.05), rows)
    assert (low, high) == (-math.inf, math.inf)


def test_separable_judgements_give_finite_cuts() -> None:
    rows = pd.DataFrame({"logit": [-3.0, -2, 2, 3], "relevance": [0, 0, 1, 1], "documents": 1})
    for on in ("platt", "isotonic"):
        (cut,) = fitted_cuts(rule(on, 0.5), rows)
        assert -2 < cut < 2


def test_documents_counted_together_weigh_as_much_as_one_by_one() -> None:
    rows = judged(300, 0.9)
    rows["logit"] = rows["logit"].round(0)
    counted = rows.groupby(["logit", "relevance"], as_index=False)["documents"].sum()
    assert len(counted) < 60
    for on in ("platt", "isotonic"):
        chosen = rule(on, 0.3, 0.6)
        assert fitted_cuts(chosen, counted) == pytest.approx(fitted_cuts(chosen, rows), abs=1e-4)
    assert separate(counted) == separate(rows)


def test_judgements_of_one_kind_are_refused() -> None:
    rows = pd.DataFrame({"logit": [-3.0, 2.0], "relevance": [1, 2], "documents": 1})
    with pytest.raises(RefusedError, match="of 2 judged documents with a score 2 are relevant"):
        fitted_cuts(rule("isotonic", 0.5), rows)


def test_separation_is_the_area_under_the_curve_of_neighbouring_grades() -> None:
    rows = judged(300, 0.7)
    rows["logit"] = rows["logit"].round(0)  # ties count half
    found = {(row["lower"], row["higher"]): row for row in separate(rows)}
    assert set(found) == {(0, 1), (1, 2)}
    for (lower, higher), row in found.items():
        both = rows[rows["relevance"].isin([lower, higher])]
        area = roc_auc_score(both["relevance"] == higher, both["logit"])
        assert row["in_order"] == pytest.approx(area, abs=1e-4)
        assert sum(row["documents"]) == len(both)


@pytest.mark.parametrize(
    ("on", "thresholds", "message"),
    [
        ("logit", [2.0, 1.0], "do not rise"),
        ("probability", [0.5, 0.5], "do not rise"),
        ("probability", [0.5, 1.5], "between 0 and 1"),
        ("quantile", [0.0, 0.5], "between 0 and 1"),
    ],
)
def test_thresholds_that_mean_nothing_are_refused(
    on: str, thresholds: list[float], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        rule(on, *thresholds)
