"""Scores against the two libraries users come from, truncated pairs included, in float32.

They agree with each other on untruncated pairs only: each cuts by a rule of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.config import ModelConfig
from jobs.runtime.errors import RefusedError
from jobs.scoring.models import resolve_model
from tests.conftest import SENTENCES, shared_data
from udfs.devices import TaskSlot
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import ScorerSpec

QUERIES = [SENTENCES[i % 8][: 9 + 7 * (i % 9)] * (1 + i % 4) for i in range(48)]
DOCS = [SENTENCES[(3 * i) % 8] * (1 + i % 6) for i in range(48)]
MAX_LENGTH = 64


def no_registry(uri: str, folder: Path) -> Path:
    raise AssertionError("no registry was asked for")


def ours(folder: Path, truncation: str) -> Scorer:
    spec = ScorerSpec(str(folder), "", max_length=MAX_LENGTH, truncation=truncation)  # type: ignore[arg-type]
    return Scorer.load(folder, spec, TaskSlot(cpus=2))


def test_longest_first_scores_as_sentence_transformers(tiny_model: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import torch

    # Both sides of the last pairs exceed 16 * max_length characters, with more tokens on either.
    queries = [*QUERIES, SENTENCES[0] * 15, SENTENCES[4] * 75]
    docs = [*DOCS, SENTENCES[4] * 75, SENTENCES[0] * 15]
    peer = sentence_transformers.CrossEncoder(str(tiny_model), max_length=MAX_LENGTH, device="cpu")
    expected = peer.predict(
        list(zip(queries, docs, strict=True)), activation_fn=torch.nn.Identity()
    )
    scores = ours(tiny_model, "longest_first").score(queries, docs)
    assert 0 < scores.truncated.sum() < len(docs)
    np.testing.assert_allclose(scores.logit, expected, atol=1e-4)


def test_a_default_prompt_is_refused_until_it_is_the_instruction(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """sentence-transformers puts it before the query; without it scores were 1.7 away."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import torch

    prompt = "Represent the query: "
    peer = sentence_transformers.CrossEncoder(
        str(tiny_bert), max_length=MAX_LENGTH, device="cpu", prompts={"q": prompt},
        default_prompt_name="q",
    )  # fmt: skip
    peer.save_pretrained(str(tmp_path))
    named = {"name": str(tmp_path), "max_length": MAX_LENGTH}
    with pytest.raises(RefusedError, match=r'set model\.query_instruction="Represent the query: "'):
        resolve_model(ModelConfig.model_validate(named), no_registry)
    for instruction in (prompt, ""):
        chosen = {**named, "query_instruction": instruction}
        folder = resolve_model(ModelConfig.model_validate(chosen), no_registry).path
    expected = peer.predict(
        list(zip(QUERIES, DOCS, strict=True)), activation_fn=torch.nn.Identity()
    )
    scores = ours(folder, "longest_first").score([prompt + query for query in QUERIES], DOCS)
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


@pytest.fixture(scope="module")
def xlmr_with_the_real_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow XLM-RoBERTa with the 250,002 tokens of bge-reranker-v2-m3."""
    import torch
    from transformers import (
        PreTrainedTokenizerFast,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
    )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(shared_data("tokenizers/xlm-roberta/tokenizer.json")),
        bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", model_max_length=512, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(3)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=514, type_vocab_size=1, num_labels=1,
        initializer_range=0.4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("xlmr")
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def real_pairs() -> tuple[list[str], list[str]]:
    """50 pairs of TREC DL19 and 24 long ones of SciFact, some of them beyond 512 tokens."""
    import json

    import pandas as pd

    passages = pd.read_parquet(shared_data("trec-dl19/candidates.parquet"))
    passages = passages.sample(50, random_state=4)
    lines = shared_data("scifact/corpus.jsonl").read_text("utf-8").splitlines()[:24]
    corpus = [json.loads(line) for line in lines]
    long = [f"{doc['title']} {doc['text']} {doc['text']}" for doc in corpus]
    claims = shared_data("scifact/queries.jsonl").read_text("utf-8").splitlines()[:24]
    queries = passages["query"].tolist() + [json.loads(line)["text"] for line in claims]
    return queries, passages["doc"].tolist() + long


@pytest.mark.parametrize("peer", ["sentence-transformers", "FlagEmbedding"])
@pytest.mark.parametrize("model", ["embedded", "xlm-roberta"])
def test_real_pairs_score_as_in_both_libraries(
    peer: str, model: str, request: pytest.FixtureRequest
) -> None:
    import torch
    from FlagEmbedding import FlagReranker
    from sentence_transformers import CrossEncoder

    from jobs.demo import FOLDER

    folder = FOLDER / "model"
    if model != "embedded":
        folder = request.getfixturevalue("xlmr_with_the_real_tokenizer")
    # The embedded model takes a second for a long pair.
    queries, docs = (side[:: 4 if model == "embedded" else 1] for side in real_pairs())
    pairs = list(zip(queries, docs, strict=True))
    if peer == "FlagEmbedding":
        policy = "passage"
        reranker = FlagReranker(str(folder), use_fp16=False, devices="cpu", max_length=512)
        expected = reranker.compute_score(pairs)
    else:
        policy = "longest_first"
        encoder = CrossEncoder(str(folder), max_length=512, device="cpu")
        expected = encoder.predict(pairs, activation_fn=torch.nn.Identity())
    spec = ScorerSpec(str(folder), "", max_length=512, truncation=policy)  # type: ignore[arg-type]
    scores = Scorer.load(folder, spec, TaskSlot(cpus=2)).score(queries, docs)
    assert scores.truncated.sum() > len(docs) / 8
    # float32 itself is up to 1e-4 away from float64 here, in either library: logits reach 7.
    np.testing.assert_allclose(scores.logit, expected, rtol=1e-4, atol=1e-4)
