"""Packed layers compute what the layers they replace compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from udfs.forward import packed

pytestmark = pytest.mark.skipif(
    not packed.available(), reason="torch has no oneDNN, or the CPU nothing it needs for bf16"
)


def test_a_layer_with_and_without_a_bias() -> None:
    torch.manual_seed(0)
    rows = torch.randn(7, 5, 64, dtype=torch.bfloat16)
    for bias in (True, False):
        layer = torch.nn.Linear(64, 96, bias=bias).bfloat16().eval()
        with torch.inference_mode():
            found = packed.PackedLinear(layer)(rows)
            expected = layer(rows)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected)


def test_gelu_is_applied_before_rounding() -> None:
    torch.manual_seed(0)
    rows = torch.randn(50, 64, dtype=torch.bfloat16)
    layer = torch.nn.Linear(64, 96).bfloat16().eval()
    fused = packed.PackedLinear(layer)
    fused.activation = ("gelu", "none")
    with torch.inference_mode():
        exact = torch.nn.functional.gelu(layer.float()(rows.float()))
        found = fused(rows).float()
        apart = torch.nn.functional.gelu(layer.bfloat16()(rows)).float()
    assert (found - exact).abs().mean() <= (apart - exact).abs().mean()


def test_a_whole_model_is_packed_and_keeps_its_scores(tiny_model: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_model, dtype=torch.float32)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, dtype=torch.bfloat16)
    packed.pack(model)
    kinds = [type(module) for module in model.modules()]
    assert torch.nn.Linear not in kinds
    assert torch.nn.Identity in kinds  # GELU went into the layer before it
    ids = torch.arange(5, 45).view(2, 20)
    with torch.inference_mode():
        found = model.eval()(ids).logits.float()
        expected = plain.eval()(ids).logits
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)


def test_only_exact_gelu_is_drawn_in() -> None:
    class Tanh(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.Linear(8, 8).bfloat16()
            self.intermediate_act_fn = torch.nn.GELU(approximate="tanh")

    module = Tanh()
    packed.pack(module)
    assert isinstance(module.intermediate_act_fn, torch.nn.GELU)
