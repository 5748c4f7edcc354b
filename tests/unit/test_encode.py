from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.conftest import SENTENCES
from udfs.encoding.pairs import PairEncoder
from udfs.spec import ScorerSpec


def encoder(folder: Path, max_length: int = 48, truncation: str = "longest_first") -> PairEncoder:
    spec = ScorerSpec(str(folder), "", max_length=max_length, truncation=truncation)  # type: ignore[arg-type]
    return PairEncoder(folder, spec)


QUERIES = [SENTENCES[i % 3][:12] for i in range(16)]
DOCS = [SENTENCES[i % 8][: 4 + 9 * i] * (1 + i % 3) for i in range(16)]


def test_batches_are_what_the_models_own_tokenizer_makes(tiny_model: Path) -> None:
    """Ids, mask and token types, cut pairs included, against transformers' own call."""
    ours = encoder(tiny_model)
    pairs = ours.encode(QUERIES, DOCS)
    inputs = pairs.padded()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    theirs = tokenizer(
        QUERIES, DOCS, truncation="longest_first", max_length=48, padding=True, return_tensors="np"
    )
    assert set(inputs) == set(theirs)
    for name, ids in inputs.items():
        np.testing.assert_array_equal(ids, theirs[name])
    assert pairs.truncated.any()
    assert not pairs.truncated.all()


def test_truncated_marks_every_pair_over_the_limit_and_no_other(tiny_model: Path) -> None:
    ours = encoder(tiny_model)
    pairs = ours.encode(QUERIES, DOCS)
    queries, docs = ours.count_tokens(QUERIES, DOCS)
    whole = queries + docs + ours.special
    np.testing.assert_array_equal(pairs.truncated, whole > 48)
    np.testing.assert_array_equal(pairs.lengths, np.minimum(whole, 48))


# Longer than the 16 * max_length characters that are looked at first. Not by much: the tokenizers
# package keeps everything that it cuts off, in all combinations of both sides.
LONG_DOCS = [
    SENTENCES[0] * 15,
    SENTENCES[4] * 60,
    "  \u200b" * 1_000 + SENTENCES[1] * 9,  # little to see in the first 3,000 characters
    "x" * 2_000,
    SENTENCES[2],
    SENTENCES[4] * 40,  # about a token a character, and so longer than the query beside it
    SENTENCES[0] * 15,
    "a " * 383 + "x" * 150 + SENTENCES[0],  # a long word, cut in the middle
]
LONG_QUERIES = [
    SENTENCES[3], SENTENCES[3] * 12, SENTENCES[5], SENTENCES[6], SENTENCES[0] * 12,
    SENTENCES[0] * 12, SENTENCES[4] * 50, SENTENCES[1] * 12,
]  # fmt: skip


@pytest.mark.parametrize("max_length", [48, 49])
def test_long_texts_are_cut_as_the_models_own_tokenizer_cuts_them(
    tiny_model: Path, max_length: int
) -> None:
    """A text is tokenised from its beginning alone, unless that gives too few tokens.

    Which of two long sides is the longer decides who gets the odd token, also where both exceed the
    16 * max_length characters that are looked at first; scores were off by up to 0.4.
    """
    ours = encoder(tiny_model, max_length=max_length)
    pairs = ours.encode(LONG_QUERIES, LONG_DOCS)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    theirs = tokenizer(
        LONG_QUERIES, LONG_DOCS, truncation="longest_first", max_length=max_length, padding=True,
        return_tensors="np",
    )  # fmt: skip
    np.testing.assert_array_equal(pairs.padded()["input_ids"], theirs["input_ids"])
    assert pairs.truncated[[0, 1, 4, 5, 6]].all()


def test_a_very_long_text_is_cheap_unless_its_count_matters(tiny_bert: Path) -> None:
    ours = encoder(tiny_bert, max_length=48)
    seen: list[int] = []
    original = ours._encode
    ours._encode = lambda texts: (seen.extend(map(len, texts)), original(texts))[1]  # type: ignore[method-assign]
    huge = SENTENCES[0] * 2_000
    ours.encode([SENTENCES[3], SENTENCES[3] * 20], [huge, huge])
    assert max(seen) < 5_000
    seen.clear()
    ours.encode([huge], [huge + " x"])
    assert max(seen) >= len(huge)
    seen.clear()
    encoder_of_passages = encoder(tiny_bert, max_length=48, truncation="passage")
    assert encoder_of_passages.encode([huge], [huge]).truncated.all()


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


def test_rows_are_padded_with_the_models_own_padding_token(tiny_bert: Path, tmp_path: Path) -> None:
    """GPT-2 finds the last token of a row by it, whatever the tokenizer calls padding."""
    for file in tiny_bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for own, expected in ((7, 7), (None, AutoTokenizer.from_pretrained(tiny_bert).pad_token_id)):
        (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": own}))
        ours = encoder(tmp_path)
        pairs = ours.encode(QUERIES[:2], ["a", SENTENCES[0]])
        assert pairs.padded()["input_ids"][0, -1] == expected


def test_a_sentencepiece_model_is_made_a_fast_tokenizer_or_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4), model_writer=trained, vocab_size=250,
        character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rembert"}))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "RemBertTokenizer"}')
    with pytest.raises(ValueError, match="has no vocabulary"):
        encoder(tmp_path)  # which transformers loads without a word
    (tmp_path / "sentencepiece.model").write_bytes(trained.getvalue())
    assert encoder(tmp_path).encode([SENTENCES[0]], [SENTENCES[1]]).lengths[0] > 20
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"make a tokenizer\.json with: pip install sentencepiece"):
        encoder(tmp_path)
