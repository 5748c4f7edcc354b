"""A vocabulary that is cut down to some texts reads them as before."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from jobs.distill.vocabulary import prune
from jobs.runtime.errors import RefusedError
from tests.conftest import SENTENCES


def load(folder: Path) -> tuple:
    return (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )


def test_the_texts_score_as_before(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load(tiny_model)
    texts = [*SENTENCES[:4], "▁ [SEP] <s>"]
    pairs = ([texts[0]] * len(texts), texts)
    inputs = tokenizer(*pairs, padding=True, return_tensors="pt")
    with torch.no_grad():
        before = model(**inputs).logits
    words = [tokenizer.convert_ids_to_tokens(row) for row in inputs["input_ids"]]
    size, prunable = len(tokenizer), load(tiny_model)[0]
    fewer = prune(prunable, tokenizer, texts, tmp_path)
    prunable.save_pretrained(tmp_path)
    model, tokenizer = load(tmp_path)
    for found in (fewer, tokenizer):
        assert len(found) == model.config.vocab_size < size
        inputs = found(*pairs, padding=True, return_tensors="pt")
        assert [found.convert_ids_to_tokens(row) for row in inputs["input_ids"]] == words
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, before)
    # Another text is spelled, not unknown.
    other = tokenizer(SENTENCES[-1], add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in other


def test_ids_that_do_not_fit_the_model_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    model, tokenizer = load(tiny_bert)
    tokenizer.add_tokens(["newword"])
    with pytest.raises(RefusedError, match=r"has \d+ embeddings, and its tokenizer the id \d+"):
        prune(model, tokenizer, SENTENCES[:2], tmp_path)
    model, tokenizer = load(tiny_bert)
    model.config.pad_token_id = len(tokenizer) - 1
    with pytest.raises(RefusedError, match=r"the id \d+ of the padding would change"):
        prune(model, tokenizer, SENTENCES[:2], tmp_path)


def test_merges_cannot_be_left_out(tiny_llm: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="seen: BPE makes pieces of each other"):
        prune(*load(tiny_llm("qwen3")), SENTENCES, tmp_path)
