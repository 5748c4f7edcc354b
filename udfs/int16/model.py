"""A cross-encoder with its encoder in 16-bit integers: padded ids in, float32 logits out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udfs.forward import unpadded as flat
from udfs.int16 import limits
from udfs.int16.encoder import Encoder, EncoderLayer, filled
from udfs.int16.kernels import kernels
from udfs.int16.layers import Pairs
from udfs.int16.matrix import Rows


def unsupported(model: torch.nn.Module) -> str | None:
    """Why a model of transformers cannot be computed in int16, with the remedy; None if it can."""
    config: Any = getattr(model, "config", None)
    name = type(model).__name__
    if not flat.supports(model):
        return f"int16 has no kernels for {name}; use model.precision=fp32"
    # A model made by hand does not say in its configuration what it is.
    if reason := limits.unsupported({**config.to_dict(), "architectures": [name]}):
        return reason
    base: Any = getattr(model, str(model.base_model_prefix))
    if kinds := {str(part.dtype) for part in model.parameters()} - {"torch.float32"}:
        return f"int16 is made from a model in float32, not {', '.join(sorted(kinds))}"
    if any(part.device.type != "cpu" for part in model.parameters()):
        return "int16 is made from a model on the CPU"
    for layer in base.encoder.layer:
        if other := _other_parts(layer):
            return f"int16 has no kernels for a layer with {other}; use model.precision=fp32"
    return None


def _other_parts(layer: Any) -> str | None:
    """The first part that is not as transformers makes it, such as an adapter or a packed layer."""
    own, after = layer.attention.self, layer.attention.output
    linear = (
        own.query,
        own.key,
        own.value,
        after.dense,
        layer.intermediate.dense,
        layer.output.dense,
    )
    others = [part for part in linear if type(part) is not torch.nn.Linear]
    norms = after.LayerNorm, layer.output.LayerNorm
    others += [part for part in norms if type(part) is not torch.nn.LayerNorm]
    activation = layer.intermediate.intermediate_act_fn
    if type(activation).__name__ != "GELUActivation":
        others.append(activation)
    return type(others[0]).__name__ if others else None


class Int16Model(flat.FlatModel):
    """`FlatModel` with the encoder of a float32 model in 16-bit integers."""

    _multiple = 1  # each share is filled up by itself

    def __init__(self, model: torch.nn.Module) -> None:
        """Pack a model that `unsupported` says nothing against.

        The layers of the encoder are taken out of it one by one, so that memory never holds them
        all in both forms; the rest of the model is used as it is.

        Raises:
            ValueError: if it cannot be computed.
        """
        if reason := unsupported(model):
            raise ValueError(reason)
        super().__init__(model)
        layers = self._layers
        # Plain attributes: `to` and `half` must not move what the kernels have addresses of.
        del self._layers
        packed = []
        while len(layers):
            packed.append(EncoderLayer.of(layers.pop(0)))
        self._encoder = Encoder(packed, self._heads)
        kernels()  # compiled now, before there are threads or forks

    def _encode(self, rows: torch.Tensor, tokens: flat.Tokens) -> torch.Tensor:
        """float32[T, H] -> float32[B, H], the first token of each pair behind all layers.

        As many threads as torch has share the pairs; what is made of one is the same.

        Raises:
            ValueError: if there is no pair, or one without a token.
        """
        if Pairs.of(tokens.lengths).end != len(rows):
            raise ValueError("the attention mask is to be 1 or 0")
        shares = _shares(tokens.lengths.numpy(), torch.get_num_threads())
        given = [_rows_of(rows, tokens, share) for share in shares]
        return torch.cat(self._encode_shares(given))

    def padding(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[B]: padding that a batch of pairs of these lengths is computed with [tokens]."""
        shares = _shares(lengths, torch.get_num_threads())
        return np.concatenate([flat.padding(lengths[share], limits.ROWS) for share in shares])

    def _encode_shares(self, given: Sequence[tuple[Rows, Pairs]]) -> list[torch.Tensor]:
        """float32[B, H] of each share, on a thread of its own if there are several."""
        if len(given) == 1:
            return [self._encoder(*given[0])]

        def encode(share: tuple[Rows, Pairs]) -> torch.Tensor:
            with torch.inference_mode():  # which each thread enters by itself
                return self._encoder(*share)

        # Made anew each time, in some 0.1 ms: threads would not live on in a forked process.
        with ThreadPoolExecutor(len(given)) as pool:
            return list(pool.map(encode, given))


def _rows_of(embedded: torch.Tensor, tokens: flat.Tokens, share: slice) -> tuple[Rows, Pairs]:
    """Copy what the encoder is given of some pairs out of float32[T, H]."""
    pairs = Pairs.of(tokens.lengths[share])
    first = int(tokens.firsts[share.start])
    rows = Rows.empty(filled(pairs.end), embedded.shape[1])
    rows.exact.tensor[: pairs.end] = embedded[first : first + pairs.end]
    rows.exact.tensor[pairs.end :] = 0
    return rows, pairs


def _shares(lengths: NDArray[np.int64], parts: int) -> list[slice]:
    """Pairs of these lengths, int64[B], in `parts` of about equal tokens; fewer if B is less."""
    ends = lengths.cumsum()
    middles = ends - lengths / 2
    cuts = np.searchsorted(middles, ends[-1] * np.arange(1, parts) / parts)
    bounds = sorted({0, *cuts.tolist(), len(lengths)})
    return [slice(first, last) for first, last in pairwise(bounds)]
