from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from udfs.encoding.truncation import longest_first, needs_longer_side, passage

counts = st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """One token per word, three special tokens a pair."""
    tokenizer = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "w": 2}, unk_token="w"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    return tokenizer


@given(pairs=counts, max_length=st.integers(8, 90))
def test_longest_first_keeps_what_hugging_face_tokenizers_keep(
    words: Tokenizer, pairs: list[tuple[int, int]], max_length: int
) -> None:
    """sentence-transformers leaves truncation to this library, so it is the oracle."""
    words.enable_truncation(max_length, strategy="longest_first")
    query, doc = (np.array(side) for side in zip(*pairs, strict=True))
    kept_query, kept_doc = longest_first(query, doc, max_length, 3)
    for at, (n, m) in enumerate(pairs):
        sides = words.encode("w " * n, "w " * m).sequence_ids
        assert (kept_query[at], kept_doc[at]) == (sides.count(0), sides.count(1))


@given(pairs=counts, max_length=st.integers(8, 90), more=st.integers(1, 50))
def test_counts_beyond_the_room_change_nothing_unless_the_longer_side_matters(
    pairs: list[tuple[int, int]], max_length: int, more: int
) -> None:
    query, doc = (np.array(side) for side in zip(*pairs, strict=True))
    free = ~needs_longer_side(query, doc, max_length, 3)
    kept = longest_first(query, doc, max_length, 3)
    longer = longest_first(query + more * (query >= max_length), doc, max_length, 3)
    for before, after in zip(kept, longer, strict=True):
        np.testing.assert_array_equal(before[free], after[free])


def _flag_embedding(query: int, doc: int, max_length: int, special: int) -> tuple[int, int]:
    """FlagEmbedding's rule, step by step, for pairs where it leaves room for the passage."""
    query, doc = min(query, max_length * 3 // 4), min(doc, max_length)
    return query, doc - max(0, query + doc + special - max_length)


@given(pairs=counts, max_length=st.integers(20, 90))
def test_passage_is_flag_embeddings_rule(pairs: list[tuple[int, int]], max_length: int) -> None:
    query, doc = (np.array(side) for side in zip(*pairs, strict=True))
    kept_query, kept_doc = passage(query, doc, max_length, 4)
    expected = [_flag_embedding(n, m, max_length, 4) for n, m in pairs]
    assert list(zip(kept_query.tolist(), kept_doc.tolist(), strict=True)) == expected


@pytest.mark.parametrize("policy", [longest_first, passage])
@given(pairs=counts, max_length=st.integers(8, 200))
def test_no_policy_exceeds_the_limit_or_cuts_a_pair_that_fits_its_rule(
    policy: object, pairs: list[tuple[int, int]], max_length: int
) -> None:
    query, doc = (np.array(side) for side in zip(*pairs, strict=True))
    kept_query, kept_doc = policy(query, doc, max_length, 4)  # type: ignore[operator]
    assert (kept_query + kept_doc + 4 <= max_length).all()
    assert (kept_query <= query).all()
    assert (kept_doc <= doc).all()
    fits = (query + doc + 4 <= max_length) & (query <= max_length * 3 // 4)
    assert (kept_query[fits] == query[fits]).all()
    assert (kept_doc[fits] == doc[fits]).all()
