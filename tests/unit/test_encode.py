from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.conftest import SENTENCES
from udfs.encoding.pairs import PairEncoder
from udfs.spec import ScorerSpec


def encoder(folder: Path, max_length: int = 48, truncation: str = "longest_first") -> PairEncoder:
    spec = ScorerSpec(str(folder), "", max_length=max_length, truncation=truncation)  # type: ignore[arg-type]
    return PairEncoder.load(folder, spec)


QUERIES = [SENTENCES[i % 3][:12] for i in range(16)]
DOCS = [SENTENCES[i % 8][: 4 + 9 * i] * (1 + i % 3) for i in range(16)]


def test_batches_are_what_the_models_own_tokenizer_makes(tiny_model: Path) -> None:
    """Ids, mask and token types, cut pairs included, against transformers' own call."""
    ours = encoder(tiny_model)
    pairs = ours.encode(QUERIES, DOCS)
    batch = ours.collate(pairs, range(len(DOCS)))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    theirs = tokenizer(
        QUERIES, DOCS, truncation="longest_first", max_length=48, padding=True, return_tensors="np"
    )
    np.testing.assert_array_equal(batch.input_ids, theirs["input_ids"])
    np.testing.assert_array_equal(batch.attention_mask, theirs["attention_mask"])
    if batch.type_ids is not None:
        np.testing.assert_array_equal(batch.type_ids, theirs["token_type_ids"])
    assert pairs.truncated.any()
    assert not pairs.truncated.all()


def test_truncated_marks_every_pair_over_the_limit_and_no_other(tiny_model: Path) -> None:
    ours = encoder(tiny_model)
    pairs = ours.encode(QUERIES, DOCS)
    queries, docs = ours.counts(QUERIES, DOCS)
    whole = queries + docs + ours.frame.size
    np.testing.assert_array_equal(pairs.truncated, whole > 48)
    np.testing.assert_array_equal(pairs.lengths, np.minimum(whole, 48))


@pytest.mark.parametrize("truncation", ["longest_first", "passage"])
def test_cutting_by_characters_first_changes_no_token(tiny_model: Path, truncation: str) -> None:
    """A text is tokenised from its beginning alone, unless that gives too few tokens."""
    ours = encoder(tiny_model, truncation=truncation)
    docs = [
        SENTENCES[0] * 400,
        SENTENCES[4] * 400,
        "  \u200b" * 5_000 + SENTENCES[1] * 9,  # little to see in the first 15,000 characters
        "x" * 20_000,
        SENTENCES[2],
    ]
    queries = [SENTENCES[3], SENTENCES[3] * 300, SENTENCES[5], SENTENCES[6], SENTENCES[0] * 200]
    cut = ours.encode(queries, docs)
    ours._tokenise = ours._encode  # type: ignore[method-assign, assignment]
    whole = ours.encode(queries, docs)
    for at in range(len(docs)):
        np.testing.assert_array_equal(cut.queries[at], whole.queries[at])
        np.testing.assert_array_equal(cut.docs[at], whole.docs[at])
    np.testing.assert_array_equal(cut.truncated, whole.truncated)


def test_a_query_of_many_candidates_is_tokenised_once(tiny_bert: Path) -> None:
    ours = encoder(tiny_bert)
    seen: list[str] = []
    original = ours._encode
    ours._encode = lambda texts: (seen.extend(texts), original(texts))[1]  # type: ignore[method-assign]
    ours.encode([SENTENCES[0]] * 100, DOCS[:1] * 100)
    assert seen.count(SENTENCES[0]) == 1


def test_no_pairs(tiny_bert: Path) -> None:
    pairs = encoder(tiny_bert).encode([], [])
    assert len(pairs.lengths) == len(pairs.truncated) == 0
