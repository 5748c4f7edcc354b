"""BERT and its relatives without padding: the tokens of a batch laid end to end.

Nine tenths of the work are layers that look at one token at a time and need no rectangle. Attention
gets one for itself, on which its CPU kernels rest. The last layer is computed for the first token
of each pair only, as nothing else of it reaches the logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from udfs.encoding.pairs import EncodedPairs
from udfs.encoding.truncation import Counts
from udfs.forward.base import BatchOutput
from udfs.forward.packed import PackedLinear

_ARCHITECTURES: Final = (
    "BertForSequenceClassification", "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification", "CamembertForSequenceClassification",
)  # fmt: skip
# Rows of attention's rectangle: its CPU kernels take up to half as long again for a width that
# 16 does not divide.
_WIDTH: Final = 16  # tokens
# Rows given to a linear layer: oneDNN makes a kernel for every shape it has not met.
_ROWS: Final = 64  # tokens


def supports(model: torch.nn.Module) -> bool:
    """Return whether a model of transformers is one that `UnpaddedModel` knows how to compute."""
    config: Any = getattr(model, "config", None)
    if type(model).__name__ not in _ARCHITECTURES or getattr(config, "is_decoder", False):
        return False
    if config.model_type != "bert" and config.pad_token_id is None:
        return False  # its positions are counted from the padding token
    return (getattr(config, "position_embedding_type", None) or "absolute") == "absolute"


@dataclass(frozen=True)
class _Layout:
    """Where the tokens [T] of a batch are in attention's rectangle [B, W].

    T is a multiple of `_ROWS`, filled up with the first token; W is a multiple of `_WIDTH`, filled
    up with tokens of the same pair that `bias` hides. Positions are int64.
    """

    tokens: torch.Tensor  # [T], index of each token in the batch
    columns: torch.Tensor  # [T], position of each token in its pair
    firsts: torch.Tensor  # [B], each pair's first token
    grid: torch.Tensor  # [B * W], the token at each position of the rectangle
    in_grid: torch.Tensor  # [T], position of each token in the rectangle, flattened
    bias: torch.Tensor  # float32[B, 1, 1, W], added for each key: 0 or minus infinity

    @classmethod
    def of(cls, lengths: Counts) -> _Layout:
        """Return the layout of pairs of these lengths [tokens]."""
        firsts, count = lengths.cumsum() - lengths, int(lengths.sum())
        tokens = np.concatenate([np.arange(count), np.zeros(-count % _ROWS, np.int64)])
        pair = np.repeat(np.arange(len(lengths)), lengths)[tokens]
        columns = tokens - firsts[pair]
        column = np.arange(-(-lengths.max() // _WIDTH) * _WIDTH)
        filled = column < lengths[:, None]
        grid = (firsts[:, None] + np.where(filled, column, 0)).ravel()
        in_grid = pair * len(column) + columns
        bias = np.where(filled, 0.0, -np.inf).astype(np.float32)[:, None, None]
        return cls(*map(torch.from_numpy, (tokens, columns, firsts, grid, in_grid, bias)))


class UnpaddedModel:
    """A sequence-classification model of `_ARCHITECTURES`, for inference on a CPU."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Use the layers of a model that `supports` says yes to; packed ones are welcome."""
        config: Any = model.config
        base: Any = getattr(model, str(model.base_model_prefix))
        self._embeddings = base.embeddings
        self._layers = base.encoder.layer
        self._pooler = getattr(base, "pooler", None) or torch.nn.Identity()
        self._classifier: Any = model.classifier
        self._heads = int(config.num_attention_heads)
        # RoBERTa and those after it count positions from behind the padding token's.
        self._first = 0 if config.model_type == "bert" else int(config.pad_token_id) + 1

    @torch.inference_mode()
    def forward(self, batch: EncodedPairs) -> BatchOutput:
        """Compute one raw logit per pair; padding is what fills the stream up to `_ROWS`."""
        layout = _Layout.of(batch.lengths)
        rows = self._embed(batch, layout)
        for layer in self._layers[:-1]:
            rows = self._layer(layer, rows, layout)
        first = self._layer(self._layers[-1], rows, layout, first_only=True)
        logits = self._classifier(self._pooler(first[:, None]))[:, 0]
        share, rest = divmod(len(layout.tokens) - len(batch.ids), len(batch.lengths))
        padding = share + (np.arange(len(batch.lengths)) < rest)
        return BatchOutput(logits.float().numpy(), padding)

    def _embed(self, batch: EncodedPairs, layout: _Layout) -> torch.Tensor:
        """[T, H]"""
        table = self._embeddings
        types = torch.zeros(1, dtype=torch.int32)
        if batch.types is not None:
            types = torch.from_numpy(batch.types)[layout.tokens]
        rows = table.word_embeddings(torch.from_numpy(batch.ids)[layout.tokens])
        rows = rows + table.token_type_embeddings(types)
        rows = rows + table.position_embeddings(layout.columns + self._first)
        embedded: torch.Tensor = table.LayerNorm(rows)
        return embedded

    def _layer(
        self, layer: Any, rows: torch.Tensor, layout: _Layout, *, first_only: bool = False
    ) -> torch.Tensor:
        """[T, H] -> [T, H]; [B, H], the first token of each pair, if nothing else is wanted."""
        own, after = layer.attention.self, layer.attention.output
        keys, values = own.key(rows), own.value(rows)
        if first_only:
            rows = rows[layout.firsts]
        mixed = _attend(own.query(rows), keys, values, layout, self._heads, first_only=first_only)
        rows = after.LayerNorm(_plus(after.dense, mixed, rows))
        inner = layer.intermediate(rows)
        result: torch.Tensor = layer.output.LayerNorm(_plus(layer.output.dense, inner, rows))
        return result


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: _Layout, heads: int,
    *, first_only: bool,
) -> torch.Tensor:  # fmt: skip
    """Attention within each pair: [T, H] each -> [T, H]; queries and result [B, H] if first_only.

    H is shared out among the heads.
    """
    shape = (len(layout.firsts), -1, heads, queries.shape[1] // heads)
    if not first_only:
        queries = queries.index_select(0, layout.grid)
    q = queries.view(shape).transpose(1, 2)
    k = keys.index_select(0, layout.grid).view(shape).transpose(1, 2)
    v = values.index_select(0, layout.grid).view(shape).transpose(1, 2)
    bias = layout.bias.to(q.dtype).expand(-1, -1, q.shape[2], -1)
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=bias)
    mixed = mixed.transpose(1, 2).reshape(-1, queries.shape[1])
    return mixed if first_only else mixed.index_select(0, layout.in_grid)


def _plus(layer: torch.nn.Module, rows: torch.Tensor, former: torch.Tensor) -> torch.Tensor:
    """The layer's output added to what was there before, in one pass where the layer can."""
    if isinstance(layer, PackedLinear):
        return layer.plus(rows, former)
    result: torch.Tensor = former + layer(rows)
    return result
