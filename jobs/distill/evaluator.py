"""nDCG@10 of held-out lists, while a model is trained."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from sentence_transformers.base.evaluation import BaseEvaluator

METRIC: Final = "ndcg@10"


class ListEvaluator(BaseEvaluator):
    """nDCG@10 of labelled lists: where there is a column `source`, the mean over the sources."""

    def __init__(self, lists: pd.DataFrame, max_length: int) -> None:
        """Leave out lists without labels."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.lists = lists[lists["labels"].notna()]
        self.max_length, self.primary_metric, self.greater_is_better = max_length, METRIC, True

    def __call__(
        self, model: Any, output_path: Any = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Score and measure."""
        lists = zip(self.lists["query"], self.lists["docs"], strict=True)
        scores = model.predict(
            [(query, doc) for query, docs in lists for doc in docs], batch_size=256,
            show_progress_bar=False, activation_fn=torch.nn.Identity(),
            processing_kwargs={"text": {"max_length": self.max_length, "truncation": True}},
        )  # fmt: skip
        return self.measure(np.split(scores, np.cumsum(self.lists["docs"].map(len))[:-1]))

    def measure(self, scores: Sequence[Any]) -> dict[str, float]:
        """Measure scores, an array for each list."""
        values = [ndcg(s, labels) for s, labels in zip(scores, self.lists["labels"], strict=True)]
        if "source" not in self.lists:
            return {METRIC: float(np.mean(values))}
        means = pd.Series(values, self.lists.index).groupby(self.lists["source"]).mean()
        return {METRIC: float(means.mean()), **{f"{METRIC} {s}": v for s, v in means.items()}}


def ndcg(scores: Any, labels: Any, depth: int = 10) -> float:
    """nDCG with linear gains, as trec_eval's; labels below 0 count as 0, ties keep their order."""
    gains = np.clip(np.array(labels, dtype=float), 0, None)
    ranked = gains[np.argsort(-np.asarray(scores, dtype=float), kind="stable")][:depth]
    best = np.sort(gains)[::-1][:depth]
    discounts = 1 / np.log2(np.arange(2, len(ranked) + 2))
    return float(ranked @ discounts / max(best @ discounts, 1e-9))
