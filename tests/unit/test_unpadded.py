"""The model without padding computes what transformers computes with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from udfs.encoding.pairs import Batch
from udfs.forward import unpadded
from udfs.forward.transformers import TorchModel
from udfs.spec import ScorerSpec


def batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Rows of these lengths, filled up with the padding token of both tiny models."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 60, mask.shape, generator=generator)
    return {"input_ids": ids.where(mask, 0), "attention_mask": mask.long()}


@pytest.mark.parametrize("lengths", [[1], [16], [7, 7], [90, 3, 41, 90], [64] * 4, [33, 17] * 9])
def test_unpadded_and_padded_agree(tiny_model: Path, lengths: list[int]) -> None:
    padded = AutoModelForSequenceClassification.from_pretrained(tiny_model, dtype=torch.float32)
    assert unpadded.supports(padded)
    inputs = batch(lengths)
    # XLM-RoBERTa counts positions by the ids, so its padding has to be its own.
    inputs["input_ids"].masked_fill_(inputs["attention_mask"] == 0, padded.config.pad_token_id)
    if padded.config.type_vocab_size > 1:
        inputs["token_type_ids"] = (torch.arange(inputs["input_ids"].shape[1]) > 5).expand(
            len(lengths), -1
        ).long()  # fmt: skip
    with torch.inference_mode():
        expected = padded.eval()(**inputs).logits[:, 0]
        found = unpadded.UnpaddedModel(padded).eval()(**inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_other_attention_goes_the_padded_way(tiny_bert: Path) -> None:
    """Who asks for eager attention gets transformers' own."""
    cpu = torch.device("cpu")
    mask = np.arange(40) < np.array([[9], [40]])
    ids = np.where(mask, 7, 0)
    for attention, sizes in (("auto", [8, 7]), ("eager", [31, 0])):
        spec = ScorerSpec(str(tiny_bert), "", attention=attention)  # type: ignore[arg-type]
        model = TorchModel.load(tiny_bert, spec, cpu, "fp32")
        assert model.forward(Batch(ids, mask.astype(np.int64), None)).padding.tolist() == sizes


def test_other_architectures_are_not_touched(tiny_bert: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    model.config.is_decoder = True
    assert not unpadded.supports(model)
    assert not unpadded.supports(torch.nn.Sequential())
