"""The model without padding computes what transformers computes with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.conftest import TINY
from udfs.encoding.pairs import EncodedPairs
from udfs.forward import unpadded
from udfs.forward.transformers import PaddedModel, load
from udfs.spec import ScorerSpec

CPU = torch.device("cpu")


def pairs_of(lengths: list[int], pad_id: int, *, typed: bool) -> EncodedPairs:
    """Pairs of these lengths; from the sixth token on they are of the second type."""
    ids = np.random.default_rng(3).integers(5, 60, sum(lengths), dtype=np.int32)
    types = np.concatenate([np.arange(n, dtype=np.int32) > 5 for n in lengths]).astype(np.int32)
    return EncodedPairs(
        ids, types if typed else None, np.array(lengths), np.zeros(len(lengths), np.bool_), pad_id
    )


@pytest.mark.parametrize("lengths", [[1], [16], [7, 7], [90, 3, 41, 90], [64] * 4, [33, 17] * 9])
def test_unpadded_and_padded_agree(tiny_model: Path, lengths: list[int]) -> None:
    padded = AutoModelForSequenceClassification.from_pretrained(tiny_model, dtype=torch.float32)
    assert unpadded.supports(padded, CPU)
    pairs = pairs_of(lengths, padded.config.pad_token_id, typed=padded.config.type_vocab_size > 1)
    expected = PaddedModel(padded.eval(), CPU).forward(pairs).logits
    found = unpadded.UnpaddedModel(padded).forward(pairs).logits
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def test_a_text_that_spells_the_padding_token_is_scored_as_in_transformers(
    tiny_model: Path,
) -> None:
    """RoBERTa and those after it do not count that token's position."""
    padded = AutoModelForSequenceClassification.from_pretrained(tiny_model, dtype=torch.float32)
    pairs = pairs_of([30, 5, 12], padded.config.pad_token_id, typed=False)
    pairs.ids[[3, 4, 17, 29, 30, 40]] = pairs.pad_id
    expected = PaddedModel(padded.eval(), CPU).forward(pairs).logits
    found = unpadded.UnpaddedModel(padded).forward(pairs).logits
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def attention_of_a_gpu(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, of_q: torch.Tensor, of_k: torch.Tensor,
    longest_q: int, longest_k: int,
) -> torch.Tensor:  # fmt: skip
    """What `varlen_attn` computes, pair by pair, as it has no kernel for CPUs."""
    assert of_q.dtype == of_k.dtype == torch.int32
    assert (of_q.diff().max(), of_k.diff().max()) == (longest_q, longest_k)
    mixed = torch.full_like(q, torch.nan)  # what is behind the last pair is never written
    for start, end, first, last in zip(of_q, of_q[1:], of_k, of_k[1:], strict=False):
        parts = (x.transpose(0, 1) for x in (q[start:end], k[first:last], v[first:last]))
        mixed[start:end] = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(0, 1)
    return mixed


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert"])
@pytest.mark.parametrize(
    "lengths", [[1], [64], [512], [7, 7], [90, 3, 41, 90], [33, 17] * 9, [*range(1, 501)]]
)
def test_the_forward_pass_of_a_gpu_computes_the_same(
    family: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attention_of_a_gpu)
    config = AutoConfig.for_model(
        family, **{**TINY, "max_position_embeddings": 520}, vocab_size=60, pad_token_id=1,
        type_vocab_size=2 if family == "bert" else 1,
    )  # fmt: skip
    torch.manual_seed(3)
    padded = AutoModelForSequenceClassification.from_config(config).eval()
    pairs = pairs_of(lengths, config.pad_token_id, typed=config.type_vocab_size > 1)
    expected = PaddedModel(padded, CPU).forward(pairs).logits
    found = unpadded.UnpaddedModel(padded, ragged=True).forward(pairs)
    np.testing.assert_allclose(found.logits, expected, atol=1e-5, rtol=1e-5)
    assert (found.padding.sum() + sum(lengths)) % 64 == 0


def test_other_attention_goes_the_padded_way(tiny_bert: Path) -> None:
    """Who asks for eager attention gets transformers' own."""
    pairs = pairs_of([9, 40], 0, typed=False)
    for attention, sizes in (("auto", [8, 7]), ("eager", [31, 0])):
        spec = ScorerSpec(str(tiny_bert), "", attention=attention)  # type: ignore[arg-type]
        model = load(tiny_bert, spec, CPU, "fp32")
        assert model.forward(pairs).padding.tolist() == sizes


def test_other_architectures_are_not_touched(tiny_bert: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    model.config.is_decoder = True
    assert not unpadded.supports(model, CPU)
    assert not unpadded.supports(torch.nn.Sequential(), CPU)


@pytest.mark.parametrize(
    ("chip", "dtype", "heads", "known"),
    [
        ((9, 0), torch.float16, 2, True),
        ((8, 0), torch.bfloat16, 2, True),
        ((7, 5), torch.float16, 2, False),
        ((9, 0), torch.float32, 2, False),
        ((9, 0), torch.float16, 8, False),  # of four dimensions
    ],
)
def test_a_gpu_computes_what_its_attention_takes(
    monkeypatch: pytest.MonkeyPatch, chip: tuple[int, int], dtype: torch.dtype, heads: int,
    known: bool,
) -> None:  # fmt: skip
    """The embedded model has heads of 34 dimensions, and is padded there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: chip)
    config = AutoConfig.for_model("bert", **{**TINY, "num_attention_heads": heads}, vocab_size=60)
    model = AutoModelForSequenceClassification.from_config(config).to(dtype)
    assert unpadded.supports(model, torch.device("cuda")) is known
    monkeypatch.setattr(unpadded, "find_spec", lambda _name: None)  # torch 2.9
    assert not unpadded.supports(model, torch.device("cuda"))
