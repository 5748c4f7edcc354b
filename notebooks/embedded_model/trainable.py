"""What makes the compiled network fit for training: what is built in stays, the head may learn."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertForSequenceClassification

from notebooks.embedded_model.compiler import COLUMNS, HIDDEN, INNER


def train_content_only(model: BertForSequenceClassification) -> None:
    """Keep what is built in (flags, averages) from training: its gradients are set to 0."""
    layers = model.config.num_hidden_layers - 2
    content, columns = torch.arange(HIDDEN), COLUMNS
    inner = torch.arange(INNER)
    rows: dict[str, Tensor] = {
        "attention.self": columns, "intermediate.dense": inner, "LayerNorm": content,
        "attention.output.dense": content, "output.dense": content,
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        mask = torch.zeros_like(parameter)
        layer = int(name.split(".")[3]) if ".layer." in name else -1
        if "embeddings" in name and "LayerNorm" not in name:
            mask[:, :HIDDEN] = 1
        elif layer < layers and (layer >= 0 or "LayerNorm" in name):
            (kept,) = (
                v
                for k, v in rows.items()
                if f".{k}." in name and (k != "output.dense" or ".attention." not in name)
            )
            wide = (
                columns
                if "attention.output.dense" in name
                else inner
                if "output.dense" in name
                else content
            )
            if parameter.dim() == 1:
                mask[kept] = 1
            else:
                mask[kept[:, None], wide] = 1
        elif layer == layers + 1 and ("self.query.weight" in name or "self.key.weight" in name):
            mask[columns[:, None], content] = 1
        elif "pooler" in name or "classifier" in name:
            mask[:] = 1
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient.device))


@torch.no_grad()
def widen_head(model: BertForSequenceClassification, factor: float, seed: int = 7) -> None:
    """Multiply the logits, and give the head features that training can use (at weight 0)."""
    torch.manual_seed(seed)
    pooler = model.bert.pooler.dense.weight
    pooler[1:, :HIDDEN] = torch.randn(len(pooler) - 1, HIDDEN) * 0.03
    pooler[0] /= 2
    model.classifier.weight *= 2 * factor
