"""Cross-encoders in 16-bit integers: what the kernels compute, what they refuse, what comes out."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from udfs import int16
from udfs.forward import unpadded as flat
from udfs.int16 import limits

if reason := int16.lacking():
    pytest.skip(reason, allow_module_level=True)

from udfs.int16.layers import Int16Linear, Int16Norm, Pairs, attend
from udfs.int16.matrix import Matrix, Rows
from udfs.int16.model import Int16Model, _shares, unsupported

# [rows, inputs, outputs]
SHAPES = [(6, 16, 16), (48, 384, 1536), (96, 1024, 80), (6, 4096, 1024), (12, 1536, 384)]
BERT = {"architectures": ["BertForSequenceClassification"]}


def layer_of(inputs: int, outputs: int) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs).requires_grad_(False)


def quantised(x: torch.Tensor) -> Rows:
    rows = Rows.empty(*x.shape)
    rows.exact.tensor.copy_(x)
    rows.quantise(rows.exact)
    return rows


def product(layer: Int16Linear, rows: Rows, former: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.empty(rows.exact.rows, layer.outputs)
    if former is None:
        layer(rows, Matrix.of(out))
    else:
        layer.plus(rows, Matrix.of(former), Matrix.of(out))
    return out


def mixed(
    qkv: torch.Tensor, lengths: list[int], heads: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of pairs of these lengths; qkv: float32[T + BEHIND, 3 H]."""
    width = qkv.shape[1] // 3
    pairs = Pairs.of(torch.tensor(lengths))
    out = torch.empty(len(qkv), width) if out is None else out
    queries, keys, values = (Matrix.of(part) for part in qkv.split(width, 1))
    attend(queries, pairs, keys, values, pairs, heads, Matrix.of(out))
    return out


def model_of(heads: int, size: int, *, xlmr: bool = False, seed: int = 5) -> torch.nn.Module:
    """Two random layers, whose weights make numbers 1.6 times as large, to tell pairs apart."""
    sizes: dict[str, Any] = {
        "hidden_size": heads * size, "num_attention_heads": heads, "num_hidden_layers": 2,
        "intermediate_size": 2 * heads * size, "max_position_embeddings": 520, "num_labels": 1,
        "vocab_size": 100, "initializer_range": 1.6 * (heads * size) ** -0.5,
    }  # fmt: skip
    torch.manual_seed(seed)
    if xlmr:
        config = XLMRobertaConfig(**sizes, type_vocab_size=1, pad_token_id=1)
        return XLMRobertaForSequenceClassification(config).eval()
    return BertForSequenceClassification(BertConfig(**sizes)).eval()


def batch(model: torch.nn.Module, lengths: list[int]) -> dict[str, torch.Tensor]:
    """Each pair's ids follow from its place and length alone."""
    config: Any = model.config
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.full(mask.shape, config.pad_token_id)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(100 * row + length)
        ids[row, :length] = torch.randint(5, 100, (length,), generator=generator)
    found = {"input_ids": ids, "attention_mask": mask.long()}
    if config.type_vocab_size > 1:
        found["token_type_ids"] = (torch.arange(max(lengths)) > 5).long().expand(len(lengths), -1)
    return found


def encoded(model: Int16Model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """float32[B, H]: what the encoder makes of each pair."""
    kept: list[torch.Tensor] = []
    head = model._head
    model._head = lambda first: kept.append(first) or head(first)  # type: ignore[method-assign]
    model(**inputs)
    del model._head
    return kept[0]


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- what can be computed --------------------------------------------------------------------


def test_the_package_needs_neither_torch_nor_llvmlite() -> None:
    code = "import sys, udfs.int16; print(sorted({'torch', 'llvmlite'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_what_is_lacking_is_said_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import llvmlite.binding as llvm

    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"avx2": True, "fma": False})
    assert "model.precision=fp32" in str(int16.lacking.__wrapped__())
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    assert str(int16.lacking.__wrapped__()).endswith("pip install 'spark-rerank[int16]'")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, None),
        ({"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}, None),
        ({"hidden_size": 384, "num_attention_heads": 12, "hidden_act": "gelu"}, None),
        ({"architectures": ["ModernBertForSequenceClassification"]}, "ModernBert"),
        ({"architectures": None}, "without a name"),
        ({"is_decoder": True}, "decoder"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "gelu_new"}, "hidden_act=gelu_new"),
        ({"hidden_size": 390, "num_attention_heads": 13}, "hidden_size=390"),
        ({"intermediate_size": 4112}, "intermediate_size=4112"),
        ({"hidden_size": 384, "num_attention_heads": 16}, "16 heads of 24"),
        ({"hidden_size": 384, "num_attention_heads": 5}, "5 heads"),
        ({"num_hidden_layers": 0}, "without layers"),
    ],
)
def test_what_a_configuration_lets_be_computed(config: dict[str, Any], said: str | None) -> None:
    found = int16.unsupported(BERT | config)
    if said is None:
        assert found is None
    else:
        assert said in str(found)
        assert "model.precision=fp32" in str(found)


def test_it_knows_the_architectures_that_flat_knows() -> None:
    assert limits.ARCHITECTURES == flat._ARCHITECTURES


def test_a_model_that_is_not_as_its_configuration_says_is_refused() -> None:
    model: Any = model_of(2, 16)
    assert unsupported(model) is None
    assert "Sequential" in str(unsupported(torch.nn.Sequential()))
    model.bert.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.ReLU()
    assert "ReLU" in str(unsupported(model))
    model.bert.encoder.layer[0].output.dense = torch.nn.Identity()
    assert "Identity" in str(unsupported(model))
    with pytest.raises(ValueError, match="Identity"):
        Int16Model(model)
    assert "bfloat16" in str(unsupported(model_of(2, 16).bfloat16()))


# --- kernels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "inputs", "outputs"), SHAPES)
def test_a_layer_is_exactly_what_its_integers_say(count: int, inputs: int, outputs: int) -> None:
    layer, x = layer_of(inputs, outputs), torch.randn(count, inputs) * 3
    x[0], x[1, 5] = 0, 1e4
    packed, rows = Int16Linear.of(layer), quantised(x)
    found = product(packed, rows)
    weight = packed.weight.permute(0, 2, 1, 3).reshape(outputs, inputs).double()
    sums = rows.integers.tensor.double() @ weight.T
    assert sums.abs().max() < 2**31
    exact = sums * rows.scales.tensor.double() * packed.scales.double() + layer.bias.double()
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6 * float(exact.std()))
    wanted = x.double() @ layer.weight.double().T + layer.bias.double()
    assert ((found - wanted).norm(dim=1) <= 2e-3 * wanted.norm(dim=1)).all()
    former = torch.randn(count, outputs)
    assert torch.equal(product(packed, rows, former), found + former)
    behind = torch.empty(count, outputs)
    packed(rows, Matrix.of(behind), "linear_gelu")
    assert (behind - gelu(found.double())).abs().max() < 2e-6


@pytest.mark.parametrize("inputs", [16, 384, 4096])
def test_the_largest_sums_there_can_be_do_not_overflow(inputs: int) -> None:
    """Rows parallel to the weights reach the bound of Cauchy and Schwarz."""
    layer, x = layer_of(inputs, 16), torch.randn(6, inputs)
    layer.weight.copy_(x[:1].expand(16, -1))
    layer.weight[1], x[1] = 1, 1
    x[2], x[3] = -x[0], x[0] * 1e-20
    packed, rows = Int16Linear.of(layer), quantised(x)
    weight = packed.weight.permute(0, 2, 1, 3).reshape(16, inputs).double()
    # Not one product's sign may be wrong for it: magnitudes alone are summed.
    sums = rows.integers.tensor.double().abs() @ weight.abs().T
    assert 0.45 * 2**31 < sums.max() < 2**31
    wanted = x.double() @ layer.weight.double().T + layer.bias.double()
    assert (product(packed, rows) - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_layers_side_by_side_and_parts_of_them() -> None:
    layers = [layer_of(64, 32), layer_of(64, 48), torch.nn.Linear(64, 16, bias=False)]
    packed, rows = Int16Linear.of(*layers), quantised(torch.randn(12, 64))
    whole = product(packed, rows)
    assert torch.equal(whole[:, 32:80], product(Int16Linear.of(layers[1]), rows))
    assert torch.equal(whole[:, 16:96], product(packed.part(16, 96), rows))


def test_layer_norm_in_float32_and_in_integers() -> None:
    norm = torch.nn.LayerNorm(384, eps=1e-12).requires_grad_(False)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, rows = torch.randn(31, 384) * 5 + 3, Rows.empty(31, 384)
    Int16Norm(norm)(Matrix.of(x), rows)
    exact, scales = rows.exact.tensor, rows.scales.tensor
    assert (exact - norm(x)).abs().max() < 1e-5
    assert ((rows.integers.tensor * scales - exact).abs() <= 0.501 * scales).all()


@pytest.mark.parametrize(
    ("heads", "size", "lengths"),
    [(12, 32, [1, 5, 6, 7, 16, 17, 100, 103, 512]), (16, 64, [33, 250, 9, 512]), (1, 16, [1])],
)
def test_attention(heads: int, size: int, lengths: list[int]) -> None:
    torch.manual_seed(1)
    qkv = torch.randn(sum(lengths) + limits.BEHIND, 3 * heads * size) * 2
    qkv[sum(lengths) :] = torch.nan  # what lies behind is of no matter
    found, at = mixed(qkv, lengths, heads), 0
    for length in lengths:
        q, k, v = (
            part.unflatten(1, (heads, size)).transpose(0, 1).double()
            for part in qkv[at : at + length].split(heads * size, 1)
        )
        wanted = scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        assert (found[at : at + length] - wanted).abs().max() < 5e-5
        at += length


def test_not_a_number_stays_in_its_row() -> None:
    layer, x = Int16Linear.of(layer_of(384, 32)), torch.randn(6, 384)
    clean = product(layer, quantised(x))
    x[1, 3], x[2, 9], x[3, 0] = torch.nan, torch.inf, 1e30  # the last: its norm is not finite
    found = product(layer, quantised(x))
    assert not found[1:4].isfinite().any()
    assert torch.equal(found[[0, 4, 5]], clean[[0, 4, 5]])


def test_not_a_number_stays_in_its_pair() -> None:
    qkv = torch.randn(40 + limits.BEHIND, 3 * 64)
    clean = mixed(qkv, [7, 13, 20], 2)
    qkv[9] = torch.nan
    found = mixed(qkv, [7, 13, 20], 2)
    assert torch.equal(found[:7], clean[:7])
    assert torch.equal(found[20:40], clean[20:40])
    assert found[7:20].isnan().all()


def test_registers_are_put_aside_at_whole_lines() -> None:
    """Half of all threads took 2.5 times as long: on their stacks it was across two cache lines.

    llvmlite leaves the attribute out, without a word, where a function has no other.
    """
    from llvmlite import ir

    from udfs.int16.linear import add_linear

    module = ir.Module()
    add_linear(module, "linear")
    (line,) = [line for line in str(module).splitlines() if line.startswith("define")]
    assert "alignstack(32)" in line


# --- memory ----------------------------------------------------------------------------------


def test_nothing_is_written_outside() -> None:
    """A layer into the middle of a larger matrix; attention may touch five rows more."""
    around = torch.full((20, 64), 7.0)
    Int16Linear.of(layer_of(64, 32))(quantised(torch.randn(6, 64)), Matrix.of(around[4:10, 16:48]))
    assert (around[4:10, 16:48] != 7).all()
    around[4:10, 16:48] = 7
    assert (around == 7).all()
    around = torch.full((40, 64), 7.0)
    mixed(torch.randn(11 + limits.BEHIND, 96), [4, 7], 2, around[4 : 4 + 16, 16:48])
    assert (around[4:15, 16:48] != 7).all()
    around[4:20, 16:48] = 7
    assert (around == 7).all()


def test_what_would_read_or_write_outside_is_refused() -> None:
    layer, rows = Int16Linear.of(layer_of(64, 32)), quantised(torch.randn(12, 64))
    out = torch.empty(12, 32)
    for bad, into in [
        (rows, out[:6]), (rows, torch.empty(12, 48)), (rows.part(0, 5), out),
        (rows.part(0, 0), out), (quantised(torch.randn(12, 48)), out),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="by a layer of 64 x 32"):
            layer(bad, Matrix.of(into))
    with pytest.raises(ValueError, match="to add to"):
        layer.plus(rows, Matrix.of(out[:6]), Matrix.of(out))
    for first, count in [(-1, 3), (7, 6), (0, -1)]:
        with pytest.raises(ValueError, match="of 12"):
            rows.part(first, count)
    with pytest.raises(ValueError, match="into 12 x 64"):
        rows.quantise(Matrix.of(torch.empty(13, 64)))
    with pytest.raises(ValueError, match="normalised"):
        Int16Norm(torch.nn.LayerNorm(64))(Matrix.of(torch.empty(11, 64)), rows)
    for tensor in (out.double(), out.T, out[:, ::2], out[0], out[:1].expand(12, -1)):
        with pytest.raises(ValueError, match=r"kernels take|not contiguous"):
            Matrix.of(tensor)
    with pytest.raises(ValueError, match="multiples of 16"):
        Rows.empty(6, 24)
    for inputs, outputs in [(24, 16), (16, 24), (4112, 16)]:
        with pytest.raises(ValueError, match="not one for these kernels"):
            Int16Linear.of(layer_of(inputs, outputs))
    with pytest.raises(ValueError, match="no packed weight"):
        Int16Linear(layer.weight.transpose(0, 1), layer.scales, layer.bias)


def test_attention_refuses_pairs_that_are_not_there() -> None:
    for lengths in ([0], [], [3, 0, 3], [-1, 5]):
        with pytest.raises(ValueError, match="one pair at least"):
            Pairs.of(torch.tensor(lengths, dtype=torch.int64))
    with pytest.raises(ValueError, match="int64"):
        Pairs.of(torch.tensor([3], dtype=torch.int32))
    for rows, heads in [(10 + 14, 2), (10 + 15, 4), (10 + 15, 3)]:
        with pytest.raises(ValueError, match="attention of 10 tokens"):
            mixed(torch.randn(rows, 96), [10], heads)


# --- the model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lengths", [[1], [6], [512], [1] * 7, [5, 90, 3, 41, 7], [33, 17, 12] * 13 + [2]]
)
@pytest.mark.parametrize(("heads", "size", "xlmr"), [(12, 32, False), (16, 64, True)])
def test_logits_are_those_of_transformers(
    heads: int, size: int, xlmr: bool, lengths: list[int]
) -> None:
    plain = model_of(heads, size, xlmr=xlmr)
    inputs = batch(plain, lengths)
    with torch.inference_mode():
        expected = plain(**inputs).logits[:, 0]
    found = Int16Model(plain).eval()(**inputs)
    assert found.dtype == torch.float32
    assert found.shape == (len(lengths),)
    # Two random layers of large weights make more of a difference than trained ones do.
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_one_layer_is_a_model_too() -> None:
    plain: Any = model_of(2, 16)
    del plain.bert.encoder.layer[1]
    inputs = batch(plain, [3, 20])
    with torch.inference_mode():
        expected = plain(**inputs).logits[:, 0]
    torch.testing.assert_close(Int16Model(plain)(**inputs), expected, atol=0.01, rtol=0)


def test_what_the_encoder_makes_of_a_pair_is_its_own(threads: Any) -> None:
    """Neither its neighbours, nor their number, nor the number of threads change a bit of it."""
    model, lengths = Int16Model(model_of(12, 32)), [5, 90, 3, 41, 7, 1, 130]
    inputs = batch(model_of(12, 32), lengths)
    threads(1)
    together = encoded(model, inputs)
    for row, length in enumerate(lengths):
        alone = {key: value[row : row + 1, :length] for key, value in inputs.items()}
        assert torch.equal(encoded(model, alone)[0], together[row])
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    turned = {key: value[order] for key, value in inputs.items()}
    assert torch.equal(encoded(model, turned), together[order])
    logits = model(**inputs)
    threads(3)
    assert torch.equal(encoded(model, inputs), together)
    torch.testing.assert_close(model(**inputs), logits, atol=1e-6, rtol=1e-6)


def test_a_pair_that_overflows_is_found_by_its_logit(threads: Any) -> None:
    """It has no number for a logit, which has it computed again in float32; the others have."""
    plain: Any = model_of(2, 16)
    inputs = batch(plain, [9, 20, 4, 7])
    clean = Int16Model(model_of(2, 16))(**inputs)
    inputs["input_ids"][1, 13] = 4
    with torch.no_grad():
        plain.bert.embeddings.word_embeddings.weight[4] = torch.nan
    model = Int16Model(plain)
    for count in (1, 3):
        threads(count)
        logits = model(**inputs)
        assert logits.isnan().tolist() == [False, True, False, False]
        torch.testing.assert_close(logits[[0, 2, 3]], clean[[0, 2, 3]], atol=1e-6, rtol=1e-6)


def test_the_weights_in_float32_are_let_go() -> None:
    plain: Any = model_of(2, 16)
    weight = weakref.ref(plain.bert.encoder.layer[0].intermediate.dense.weight)
    model = Int16Model(plain)
    gc.collect()
    assert weight() is None
    assert not [name for name, _ in model.named_parameters() if "encoder" in name]


def test_batches_that_cannot_be_are_refused() -> None:
    model = Int16Model(model_of(2, 16))
    ids = torch.full((2, 4), 7)
    for mask in ([[1, 1, 1, 1], [0, 0, 0, 0]], [[2, 1, 1, 1], [1, 1, 0, 0]]):
        with pytest.raises(ValueError, match=r"one token|1 or 0"):
            model(ids, torch.tensor(mask))


LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 9))
def test_shares_have_every_pair_once_and_about_as_many_tokens(
    lengths: list[int], parts: int
) -> None:
    shares = _shares(np.array(lengths), parts)
    assert [row for share in shares for row in range(share.start, share.stop)] == list(
        range(len(lengths))
    )
    assert 1 <= len(shares) <= parts
    for share in shares:
        assert 0 < sum(lengths[share]) <= sum(lengths) / parts + max(lengths)


@given(LENGTHS)
def test_padding_is_what_the_rows_are_filled_up_with(lengths: list[int]) -> None:
    model = Int16Model.__new__(Int16Model)
    padding = model.padding(np.array(lengths))
    assert padding.shape == (len(lengths),)
    for share in _shares(np.array(lengths), torch.get_num_threads()):
        assert 0 <= padding[share].sum() < limits.ROWS
        assert (sum(lengths[share]) + padding[share].sum()) % limits.ROWS == 0
