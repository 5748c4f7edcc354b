"""Long documents: windows over their tokens, scored with the query and aggregated."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.conftest import SENTENCES
from udfs.devices import TaskSlot
from udfs.encoding.passages import window_starts
from udfs.scorers.base import NONFINITE, OK
from udfs.scorers.cross_encoder import Scorer
from udfs.scorers.passages import PassageScorer
from udfs.spec import PassageSpec, ScorerSpec
from udfs.worker import get_scorer

LONG = [" ".join(SENTENCES[at:] + SENTENCES[:at]) for at in range(5)]
QUERIES = ["how long does a flea live", "earbuds", "跳蚤的寿命", "flea", "bread and yeast"]
SPEC = PassageSpec(size=24, stride=10)


def scorer(folder: Path, passages: PassageSpec | None, **spec: object) -> Scorer | PassageScorer:
    made = ScorerSpec(str(folder), "", max_length=64, passages=passages)
    found = get_scorer(folder, replace(made, **spec), TaskSlot()).scorer  # type: ignore[arg-type]
    assert isinstance(found, PassageScorer if passages else Scorer)
    return found


def one_by_one(
    folder: Path, query: str, doc: str, spec: PassageSpec
) -> tuple[list[float], list[tuple[int, int]]]:
    """Logits and character ranges of a document's windows, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    whole = tokenizer(doc, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = whole["input_ids"], whole["offset_mapping"]
    start, logits, ranges = 0, [], []
    while True:
        start = min(start, max(len(ids) - spec.size, 0))
        pair = tokenizer.encode(query, "x")
        one = tokenizer("x", add_special_tokens=False)["input_ids"]
        at = next(i for i in range(len(pair), -1, -1) if pair[i : i + len(one)] == one)
        inputs = [*pair[:at], *ids[start : start + spec.size], *pair[at + len(one) :]]
        types = [0] * at + [1] * (len(inputs) - at)
        kinds = (
            {"token_type_ids": torch.tensor([types])} if model.config.type_vocab_size > 1 else {}
        )
        with torch.no_grad():
            logits.append(float(model(torch.tensor([inputs]), **kinds).logits))
        end = min(start + spec.size, len(ids))
        ranges.append((offsets[start][0], offsets[end - 1][1]))
        if end == len(ids):
            return logits, ranges
        start += spec.stride


def test_windows_cover_every_token_and_the_last_ends_with_the_document() -> None:
    for count in range(200):
        starts = window_starts(count, SPEC)
        assert starts[0] == 0 and all(0 < b - a <= 10 for a, b in pairwise(starts))
        assert starts[-1] + 24 == count if count > 24 else starts == [0]


def test_a_score_is_the_maximum_over_windows_scored_one_by_one(tiny_model: Path) -> None:
    scores = scorer(tiny_model, SPEC).score(QUERIES, LONG)
    assert (scores.status == OK).all() and not scores.truncated.any()
    for at, (query, doc) in enumerate(zip(QUERIES, LONG, strict=True)):
        logits, ranges = one_by_one(tiny_model, query, doc, SPEC)
        assert len(logits) == scores.n_passages[at] > 5
        assert scores.logit[at] == pytest.approx(max(logits), abs=1e-4)
        assert scores.first_logit[at] == pytest.approx(logits[0], abs=1e-4)
        best = ranges[int(np.argmax(logits))]
        assert (scores.passage_start[at], scores.passage_end[at]) == best
        assert doc[slice(*best)].strip()


@pytest.mark.parametrize("aggregate", ["first", "mean_top_k", "sum_of_top_k"])
def test_logits_are_aggregated(tiny_bert: Path, aggregate: str) -> None:
    spec = PassageSpec(24, 10, aggregate, 1 if aggregate == "first" else 3)  # type: ignore[arg-type]
    scores = scorer(tiny_bert, spec).score(QUERIES, LONG)
    for at, (query, doc) in enumerate(zip(QUERIES, LONG, strict=True)):
        logits, ranges = one_by_one(tiny_bert, query, doc, spec)
        top = sorted(logits, reverse=True)[:3]
        values = {"first": logits[0], "mean_top_k": np.mean(top), "sum_of_top_k": np.sum(top)}
        assert scores.logit[at] == pytest.approx(values[aggregate], abs=2e-4)
        assert scores.n_passages[at] == len(logits)
        if aggregate == "first":  # the others are not even scored
            assert scores.truncated[at] and scores.passage_start[at] == 0
            assert scores.n_tokens[at] < 64 and scores.passage_end[at] == ranges[0][1]


def test_a_document_of_one_window_scores_as_without_passages(tiny_model: Path) -> None:
    docs = [*SENTENCES[:3], "a", "🜚"]
    spec = PassageSpec(size=80, stride=25)
    plain = scorer(tiny_model, None, max_length=96).score(QUERIES, docs)
    scores = scorer(tiny_model, spec, max_length=96).score(QUERIES, docs)
    assert scores.n_passages.tolist() == [1] * 5
    np.testing.assert_allclose(scores.logit, plain.logit, atol=1e-5)
    np.testing.assert_allclose(scores.first_logit, plain.logit, atol=1e-5)
    for name in ("n_tokens", "truncated", "status"):
        assert scores[name].tolist() == plain[name].tolist(), name
    assert (scores.passage_start[0], scores.passage_end[0]) == (0, len(docs[0]))
    assert len(scorer(tiny_model, spec).score([], [])) == 0


def test_a_window_without_a_number_leaves_the_document_without_one(tiny_bert: Path) -> None:
    found = scorer(tiny_bert, SPEC)
    assert isinstance(found, PassageScorer)
    inner, docs = found._scorer, [LONG[0], "bread"]
    whole = inner.score_encoded

    def broken(pairs: object) -> object:
        scores = whole(pairs)  # type: ignore[arg-type]
        scores.status[3], scores.logit[3] = NONFINITE, np.nan
        return scores

    inner.score_encoded = broken  # type: ignore[assignment, method-assign]
    try:
        scores = found.score(QUERIES[:2], docs)
    finally:
        inner.score_encoded = whole  # type: ignore[method-assign]
    assert scores.status.tolist() == [NONFINITE, OK]
    assert np.isnan(scores.logit[0]) and np.isfinite(scores.logit[1])


def test_only_passages_that_are_set_change_a_fingerprint() -> None:
    plain = ScorerSpec("m", "d")
    assert "passages" not in plain.scoring()
    prints = {
        replace(plain, passages=passages).fingerprint()
        for passages in (None, SPEC, PassageSpec(24, 12), PassageSpec(24, 10, "mean_top_k", 3))
    }
    assert len(prints) == 4 and plain.fingerprint() in prints
