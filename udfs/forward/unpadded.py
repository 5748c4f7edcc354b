"""BERT and its relatives without padding: the tokens of a batch laid end to end.

Nine tenths of the work are layers that look at one token at a time and need no rectangle. Only
attention differs: a GPU has a kernel for rows of any length, a CPU needs a rectangle. The last
layer is computed for the first token of each pair only, as nothing else of it reaches the logit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import linear, scaled_dot_product_attention

from udfs.encoding.pairs import EncodedPairs
from udfs.encoding.truncation import Counts
from udfs.forward.base import BatchOutput
from udfs.forward.packed import PackedLinear
from udfs.forward.transfer import now, read, send

_ARCHITECTURES: Final = (
    "BertForSequenceClassification", "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification", "CamembertForSequenceClassification",
)  # fmt: skip
# Rows of attention's rectangle: its CPU kernels take up to half as long again for a width that
# 16 does not divide.
_WIDTH: Final = 16  # tokens
# Rows given to a linear layer: oneDNN makes a kernel for every shape it has not met.
_ROWS: Final = 64  # tokens


def supports(model: Any, device: torch.device) -> bool:
    """Return whether `UnpaddedModel` can compute a model of transformers there.

    On a GPU in half precision only, from Ampere on, heads of whole eights: as its kernel has it,
    which is in torch from 2.10 on.
    """
    config: Any = getattr(model, "config", None)
    if type(model).__name__ not in _ARCHITECTURES or getattr(config, "is_decoder", False):
        return False
    if config.model_type != "bert" and config.pad_token_id is None:
        return False  # its positions are counted from the padding token
    if (getattr(config, "position_embedding_type", None) or "absolute") != "absolute":
        return False
    if device.type == "cpu":
        return True
    if torch.version.hip or find_spec("torch.nn.attention.varlen") is None:
        return False
    recent = torch.cuda.get_device_capability(device) >= (8, 0)
    even = config.hidden_size // config.num_attention_heads % 8 == 0
    return recent and even and model.base_model.dtype != torch.float32


class _Ragged:
    """Attention on a GPU: a kernel for rows of any length."""

    def __init__(self, bounds: torch.Tensor, longest: int) -> None:
        """Take int32[B + 1], where each pair's tokens begin and the last one's end, on the GPU."""
        self._bounds, self._longest = bounds, longest
        self._alone = torch.arange(len(bounds), dtype=torch.int32, device=bounds.device)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """[S, heads, D] each -> [S, H]; of queries of the pairs' first tokens alone, [B, H]."""
        from torch.nn.attention.varlen import varlen_attn

        bounds, longest = (self._bounds, self._longest) if len(q) == len(k) else (self._alone, 1)
        mixed: Any = varlen_attn(q, k, v, bounds, self._bounds, longest, self._longest)
        return mixed.flatten(1)  # type: ignore[no-any-return]


class _Rectangle:
    """Attention on a CPU: W tokens for each pair, filled up with its own that a bias hides."""

    def __init__(self, lengths: Counts, pair: Counts, columns: Counts) -> None:
        """Take each pair's length [B], and each token's pair and place in it [S]."""
        firsts, column = lengths.cumsum() - lengths, np.arange(-(-lengths.max() // _WIDTH) * _WIDTH)
        filled = column < lengths[:, None]
        bias = np.where(filled, 0.0, -np.inf).astype(np.float32)[:, None, None]
        # Which token is at each position of the rectangle, and at which position each token is.
        self._grid = torch.from_numpy((firsts[:, None] + np.where(filled, column, 0)).ravel())
        self._in_grid = torch.from_numpy(pair * len(column) + columns)
        self._bias = torch.from_numpy(bias)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Compute the same."""
        first_only, pairs = len(q) != len(k), len(self._bias)
        if not first_only:
            q = q.index_select(0, self._grid)
        k, v = k.index_select(0, self._grid), v.index_select(0, self._grid)
        q, k, v = (rows.view(pairs, -1, *rows.shape[1:]).transpose(1, 2) for rows in (q, k, v))
        bias = self._bias.to(q.dtype).expand(-1, -1, q.shape[2], -1)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(pairs * q.shape[2], -1)
        return mixed if first_only else mixed.index_select(0, self._in_grid)


class UnpaddedModel:
    """A sequence-classification model of `_ARCHITECTURES`, on a CPU or a GPU."""

    def __init__(self, model: torch.nn.Module, *, ragged: bool = False, label: int = 0) -> None:
        """Take over the layers, packed or not; `ragged` is for what is quicker on a GPU."""
        self._label = label
        config: Any = model.config
        base: Any = getattr(model, str(model.base_model_prefix))
        self._embeddings = base.embeddings
        self._layers = base.encoder.layer
        self._pooler = getattr(base, "pooler", None) or torch.nn.Identity()
        self._classifier: Any = model.classifier
        self._heads = int(config.num_attention_heads)
        self._pad: int | None = None if config.model_type == "bert" else int(config.pad_token_id)
        self._device: torch.device = self._embeddings.word_embeddings.weight.device
        self._ragged = ragged
        self._add_and_normalise: Callable[..., torch.Tensor] = lambda x, y, norm: norm(x + y)
        if ragged:
            self._fuse()

    @torch.inference_mode()
    def forward(self, batch: EncodedPairs) -> BatchOutput:
        """Compute one raw logit per pair; padding is what fills the stream up to `_ROWS`."""
        start, lengths, count = now(self._device), batch.lengths, len(batch.ids)
        tokens = np.concatenate([np.arange(count), np.zeros(-count % _ROWS, np.int64)])
        bounds = np.concatenate([[0], lengths.cumsum()])
        pair = np.repeat(np.arange(len(lengths)), lengths)[tokens]
        columns = tokens - bounds[pair]
        positions = columns if self._pad is None else _behind_padding(batch, self._pad)[tokens]
        attend: _Rectangle | _Ragged = (
            _Ragged(self._send(bounds), int(lengths.max()))
            if self._ragged
            else _Rectangle(lengths, pair, columns)
        )
        rows = self._embed(batch, tokens, positions)
        for layer in self._layers[:-1]:
            rows = self._layer(layer, rows, attend)
        first = self._layer(self._layers[-1], rows, attend, self._send(bounds[:-1]))
        logits = self._classifier(self._pooler(first[:, None]))[:, self._label]
        share, rest = divmod(len(tokens) - count, len(lengths))
        return read(logits, share + (np.arange(len(lengths)) < rest), start)

    def _send(self, array: NDArray[Any]) -> torch.Tensor:
        return send(array.astype(np.int32, copy=False), self._device)

    def _embed(self, batch: EncodedPairs, tokens: Counts, positions: Counts) -> torch.Tensor:
        """[S, H]"""
        table = self._embeddings
        types = np.zeros(1, np.int32) if batch.types is None else batch.types[tokens]
        rows = table.word_embeddings(self._send(batch.ids[tokens]))
        rows = rows + table.token_type_embeddings(self._send(types))
        rows = rows + table.position_embeddings(self._send(positions))
        embedded: torch.Tensor = table.LayerNorm(rows)
        return embedded

    def _layer(
        self, layer: Any, rows: torch.Tensor, attend: _Rectangle | _Ragged,
        firsts: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """[S, H] -> [S, H]; [B, H], the tokens at `firsts`, if nothing else is wanted."""
        wanted = rows if firsts is None else rows.index_select(0, firsts)
        # Queries, keys and values are gone when it returns: the memory is used again at once.
        mixed = attend(*_project(layer.attention.self, rows, wanted, self._heads))
        rows = self._add(layer.attention.output, mixed, wanted)
        return self._add(layer.output, layer.intermediate(rows), rows)

    def _add(self, part: Any, rows: torch.Tensor, former: torch.Tensor) -> torch.Tensor:
        """Normalise the sum of a part's output and of what was there before."""
        if not isinstance(part.dense, PackedLinear):
            return self._add_and_normalise(part.dense(rows), former, part.LayerNorm)
        result: torch.Tensor = part.LayerNorm(part.dense.plus(rows, former))
        return result

    def _fuse(self) -> None:
        """Put queries, keys and values into one product, and additions into LayerNorm.

        For the latter, Triton compiles a kernel; it needs a C compiler and a folder to write to.
        """
        for layer in self._layers:
            own = layer.attention.self
            parts = (own.query, own.key, own.value)
            weight = torch.cat([part.weight for part in parts])
            own.fused = weight.detach(), torch.cat([part.bias for part in parts]).detach()
            del own.query, own.key, own.value
        with suppress(Exception):  # whatever Triton and the compiler raise
            from udfs.forward.fused import add_and_normalise

            norm = self._embeddings.LayerNorm
            row = torch.zeros_like(norm.weight)[None]
            add_and_normalise(row, row, norm)
            self._add_and_normalise = add_and_normalise


def _behind_padding(batch: EncodedPairs, pad: int) -> Counts:
    """Positions int64[S] as RoBERTa and those after it count them: from behind the padding token's.

    That token itself, which a text may spell out, has its own number and is not counted.
    """
    real = batch.ids != pad
    counted = np.cumsum(real)
    starts = batch.lengths.cumsum() - batch.lengths
    before = np.repeat(counted[starts] - real[starts], batch.lengths)
    return np.where(real, counted - before, 0) + pad


def _project(
    own: Any, rows: torch.Tensor, wanted: torch.Tensor, heads: int
) -> Iterator[torch.Tensor]:
    """Queries of `wanted`, keys and values of `rows`: [.., heads, D] each."""
    if not hasattr(own, "fused"):
        parts: Sequence[torch.Tensor] = (own.query(wanted), own.key(rows), own.value(rows))
    else:
        (weight, bias), size = own.fused, rows.shape[1]
        if wanted is rows:
            parts = linear(rows, weight, bias).chunk(3, 1)
        else:
            queries = linear(wanted, weight[:size], bias[:size])
            parts = (queries, *linear(rows, weight[size:], bias[size:]).chunk(2, 1))
    return (part.view(len(part), heads, -1) for part in parts)
