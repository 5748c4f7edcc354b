"""Scores against the two libraries users come from, truncated pairs included, in float32.

They agree with each other on untruncated pairs only: each cuts by a rule of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SENTENCES
from udfs.devices import TaskSlot
from udfs.scorer import Scorer
from udfs.spec import ScorerSpec

QUERIES = [SENTENCES[i % 8][: 9 + 7 * (i % 9)] * (1 + i % 4) for i in range(48)]
DOCS = [SENTENCES[(3 * i) % 8] * (1 + i % 6) for i in range(48)]
MAX_LENGTH = 64


def ours(folder: Path, truncation: str) -> Scorer:
    spec = ScorerSpec(str(folder), "", max_length=MAX_LENGTH, truncation=truncation)  # type: ignore[arg-type]
    return Scorer.load(folder, spec, TaskSlot(cpus=2))


def test_longest_first_scores_as_sentence_transformers(tiny_model: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import torch

    peer = sentence_transformers.CrossEncoder(str(tiny_model), max_length=MAX_LENGTH, device="cpu")
    expected = peer.predict(
        list(zip(QUERIES, DOCS, strict=True)), activation_fn=torch.nn.Identity()
    )
    scores = ours(tiny_model, "longest_first").score(QUERIES, DOCS)
    assert 0 < scores.truncated.sum() < len(DOCS)
    np.testing.assert_allclose(scores.logit, expected, atol=1e-4)


def test_passage_scores_as_flag_embedding(tiny_model: Path) -> None:
    """With transformers 5 FlagEmbedding decodes a query it has cut and tokenises it again.

    WordPiece gives the same tokens again. A Unigram model as small as the one here does not where
    it knows no character, so XLM-RoBERTa is compared on texts that it knows.
    """
    flag_embedding = pytest.importorskip("FlagEmbedding")
    peer = flag_embedding.FlagReranker(
        str(tiny_model), use_fp16=False, devices="cpu", max_length=MAX_LENGTH
    )
    expected = peer.compute_score(list(zip(QUERIES, DOCS, strict=True)))
    scores = ours(tiny_model, "passage").score(QUERIES, DOCS)
    assert 0 < scores.truncated.sum() < len(DOCS)
    np.testing.assert_allclose(scores.logit, expected, atol=1e-4)


def test_the_two_rules_differ_on_truncated_pairs_only(tiny_model: Path) -> None:
    first, second = (
        ours(tiny_model, policy).score(QUERIES, DOCS) for policy in ("longest_first", "passage")
    )
    whole = ~(first.truncated | second.truncated)
    np.testing.assert_allclose(first.logit[whole], second.logit[whole], atol=1e-4)
    assert np.abs(first.logit - second.logit).max() > 1e-3
