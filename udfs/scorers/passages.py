"""A document's score from those of its windows."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from udfs.encoding.passages import Passages, encode_passages
from udfs.scorers.base import OK, PASSAGES, Scores, new_scores
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import PassageSpec


class PassageScorer:
    """Scores every window of a document with a cross-encoder, and aggregates their logits."""

    def __init__(self, scorer: Scorer, spec: PassageSpec) -> None:
        """Take a scorer that is loaded."""
        self.encodes_ahead = scorer.encodes_ahead
        self._scorer, self._spec = scorer, spec

    @property
    def rescored(self) -> float:
        """Share of all windows so far that were scored again in float32."""
        return self._scorer.rescored

    def score(self, queries: Sequence[str], docs: Sequence[str]) -> Scores:
        """Score N pairs of texts; N may be 0."""
        return self.score_encoded(self.encode(queries, docs))

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> Passages:
        """Tokenise N pairs, each document once, and lay windows over it."""
        return encode_passages(self._scorer.encoder, queries, docs, self._spec)

    def score_encoded(self, pairs: Passages) -> Scores:
        """Score all windows. A document has no logit, and their status, where one of them has none.

        Tokens and time are those of all its windows.
        """
        windows, spec = self._scorer.score_encoded(pairs.windows), self._spec
        scores = new_scores(len(pairs.counts), columns=PASSAGES)
        scores.n_passages = pairs.counts
        ends = pairs.encoded.cumsum()
        for at, (start, end) in enumerate(zip(ends - pairs.encoded, ends, strict=True)):
            rows, score = cast(Scores, windows[start:end]), scores[at]
            for name in ("n_tokens", "n_padded", "device_ms"):
                score[name] = rows[name].sum()
            score.truncated = rows.truncated.any() or len(rows) < pairs.counts[at]
            score.status = next((status for status in rows.status if status != OK), OK)
            if score.status == OK:
                best = np.sort(rows.logit.astype(np.float64))[: -spec.k - 1 : -1]
                score.logit = best.sum() if spec.aggregate == "sum_of_top_k" else best.mean()
                score.first_logit = rows.logit[0]
                score.passage_start, score.passage_end = pairs.ranges[start + rows.logit.argmax()]
        return scores
