"""A causal language model that answers with its next token, as transformers has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from udfs.encoding.pairs import EncodedPairs
from udfs.forward.base import BatchOutput, ModelError
from udfs.forward.transfer import now, read, send


class AnswerHead(torch.nn.Module):
    """The rows of a language model's head that score, in float32.

    Takes hidden states [B, L, H] of any float type; gives the logits [B, 1, tokens] at each row's
    last position. What the model does to its logits (scales, caps) it does to these.
    """

    last: torch.Tensor  # int64[B], where each prompt ends

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take float32[tokens, H] and float32[tokens]."""
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute the logits."""
        rows = hidden[torch.arange(len(hidden), device=hidden.device), self.last]
        return linear(rows.float(), self.weight, self.bias)[:, None]


def give_answer_head(
    model: Any, answers: Sequence[int], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Replace a model's head, whose vocabulary is large, by the rows of the answers.

    Weights are taken from the checkpoint's tensors where these have them, as the model's are
    rounded to its precision.
    """
    whole = model.get_output_embeddings()
    if type(whole) is not torch.nn.Linear:
        raise ModelError(f"{type(model).__name__} has no linear head over its vocabulary")
    if max(answers) >= len(whole.weight):
        raise ModelError(f"the answers are tokens {list(answers)} of {len(whole.weight)}")
    # A head that is tied to the embeddings has their name.
    named = {id(value): name for name, value in model.named_parameters()}

    def rows(part: torch.Tensor) -> torch.Tensor:
        own = tensors.get(named[id(part)], part.detach())
        return own[list(answers)].float().clone()

    bias = None if whole.bias is None else rows(whole.bias)
    model.set_output_embeddings(AnswerHead(rows(whole.weight), bias))


@dataclass(frozen=True)
class CausalModel:
    """A causal language model with an `AnswerHead`, on one device."""

    model: Any
    device: torch.device

    @torch.inference_mode()
    def forward(self, batch: EncodedPairs) -> BatchOutput:
        """Compute one raw score per prompt.

        Rows are padded on the right: no token of a prompt sees what comes after it, and positions
        count from its first token.
        """
        start = now(self.device)
        inputs = {name: send(array, self.device) for name, array in batch.padded().items()}
        self.model.get_output_embeddings().last = send(batch.lengths - 1, self.device)
        logits = self.model(**inputs, use_cache=False).logits[:, 0].float()
        scores = logits[:, 0] - logits[:, 1:].sum(1)  # of one answer or two
        return read(scores, batch.lengths.max() - batch.lengths, start)
