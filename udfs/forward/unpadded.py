"""BERT and its relatives without padding: the tokens of a batch laid end to end.

Nine tenths of the work are layers that look at one token at a time. They need no rectangle, so here
they are given the tokens alone. Attention gets a rectangle back, on which its kernels rest, just
before and just for itself. The last layer is computed for the first token of each pair only, as
nothing else of it reaches the logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

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


class UnpaddedModel(torch.nn.Module):
    """A sequence-classification model of `_ARCHITECTURES`, for inference."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Use the layers of a model that `supports` says yes to; packed ones are welcome."""
        super().__init__()
        config: Any = model.config
        base: Any = getattr(model, str(model.base_model_prefix))
        self._embeddings = base.embeddings
        self._layers = base.encoder.layer
        self._pooler = getattr(base, "pooler", None)
        self._classifier: Any = model.classifier
        self._heads = int(config.num_attention_heads)
        # RoBERTa and those after it count positions from behind the padding token's.
        self._first = 0 if config.model_type == "bert" else int(config.pad_token_id) + 1

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """int64[B, L], rows padded on the right -> [B], one logit per row."""
        layout = _Layout.of(attention_mask)
        rows = self._embed(input_ids, token_type_ids, layout)
        for layer in self._layers[:-1]:
            rows = self._layer(layer, rows, layout)
        return self._head(self._layer(self._layers[-1], rows, layout, first_only=True))

    def padding(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the tokens that fill up a batch, shared out among its pairs, int64[B]."""
        share, rest = divmod(-int(lengths.sum()) % _ROWS, len(lengths))
        return share + (np.arange(len(lengths)) < rest)

    def _embed(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None, layout: _Layout
    ) -> torch.Tensor:
        """[T, H]"""
        table = self._embeddings
        types = layout.columns.new_zeros(1)
        if token_type_ids is not None:
            types = token_type_ids.flatten()[layout.sources]
        rows = table.word_embeddings(input_ids.flatten()[layout.sources])
        rows = rows + table.token_type_embeddings(types)
        rows = rows + table.position_embeddings(layout.columns + self._first)
        result: torch.Tensor = table.LayerNorm(rows)
        return result

    def _head(self, first: torch.Tensor) -> torch.Tensor:
        """[B, H], the first token of each pair -> [B], its logit."""
        first = first[:, None]
        if self._pooler is not None:
            first = self._pooler(first)
        logits: torch.Tensor = self._classifier(first)
        return logits[:, 0]

    def _layer(
        self, layer: Any, rows: torch.Tensor, layout: _Layout, *, first_only: bool = False
    ) -> torch.Tensor:
        """[T, H] -> [T, H]; [B, H], the first token of each pair, if nothing else is wanted."""
        own, after = layer.attention.self, layer.attention.output
        keys, values = (self._in_grid(part(rows), layout) for part in (own.key, own.value))
        if first_only:
            rows = rows[layout.firsts]
            queries = self._by_head(own.query(rows), len(rows))
        else:
            queries = self._in_grid(own.query(rows), layout)
        bias = layout.bias.to(rows.dtype).expand(-1, -1, queries.shape[2], -1)
        mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(-1, rows.shape[1])
        if not first_only:
            mixed = mixed.index_select(0, layout.in_grid)
        rows = after.LayerNorm(_plus(after.dense, mixed, rows))
        inner = layer.intermediate(rows)
        result: torch.Tensor = layer.output.LayerNorm(_plus(layer.output.dense, inner, rows))
        return result

    def _in_grid(self, rows: torch.Tensor, layout: _Layout) -> torch.Tensor:
        """[T, H] -> [B, heads, W, H / heads]"""
        return self._by_head(rows.index_select(0, layout.grid), len(layout.firsts))

    def _by_head(self, rows: torch.Tensor, pairs: int) -> torch.Tensor:
        return rows.view(pairs, -1, self._heads, rows.shape[1] // self._heads).transpose(1, 2)


@dataclass(frozen=True)
class _Layout:
    """How the tokens [T] of a batch, laid end to end, and attention's rectangle [B, W] correspond.

    T is a multiple of `_ROWS`, filled up with the first token; W is a multiple of `_WIDTH`, filled
    up with tokens of the same pair that `bias` hides.

    Attributes:
        sources: int64[T], position of each token in the padded batch, flattened.
        columns: int64[T], position of each token in its pair.
        firsts: int64[B], each pair's first token.
        grid: int64[B * W], the token at each position of the rectangle.
        in_grid: int64[T], position of each token in the rectangle, flattened.
        bias: float32[B, 1, 1, W], added to the attention of each key: 0 or minus infinity.
    """

    sources: torch.Tensor
    columns: torch.Tensor
    firsts: torch.Tensor
    grid: torch.Tensor
    in_grid: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor) -> _Layout:
        """Return the layout of a mask, int64[B, L]: 1 for a token, padded on the right."""
        length, lengths = mask.shape[1], mask.sum(1)
        sources = mask.flatten().nonzero()[:, 0]
        sources = torch.cat([sources, sources.new_zeros(-len(sources) % _ROWS)])
        columns, firsts = sources % length, lengths.cumsum(0) - lengths
        width = -(-length // _WIDTH) * _WIDTH
        column = torch.arange(width, device=mask.device)
        filled = column < lengths[:, None]
        bias = torch.zeros(filled.shape, device=mask.device).masked_fill(~filled, -torch.inf)
        return cls(
            sources=sources,
            columns=columns,
            firsts=firsts,
            grid=(firsts[:, None] + torch.where(filled, column, 0)).flatten(),
            in_grid=sources // length * width + columns,
            bias=bias[:, None, None],
        )


def _plus(layer: torch.nn.Module, rows: torch.Tensor, former: torch.Tensor) -> torch.Tensor:
    """The layer's output added to what was there before, in one pass where the layer can."""
    if isinstance(layer, PackedLinear):
        return layer.plus(rows, former)
    result: torch.Tensor = former + layer(rows)
    return result
