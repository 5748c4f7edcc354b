"""What the logits of a list of documents are to come to."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

import torch
import torch.nn.functional as F
from sentence_transformers.cross_encoder.losses import LambdaLoss
from torch import Tensor, nn

# All take float32[lists, documents]: logits, targets. Targets are NaN where there is no document or
# nothing known of it; at least one per list is known.


def listwise_kl(logits: Tensor, scores: Tensor) -> Tensor:
    """KL divergence of the softmax over a list from that of the teacher's scores."""
    known = scores.isfinite()
    target = scores.masked_fill(~known, -torch.inf).softmax(1)
    gaps = (target.clamp(min=1e-12).log() - log_softmax(logits, known)) * target
    return gaps.masked_fill(~known, 0.0).sum(1).mean()


def margin_mse(logits: Tensor, scores: Tensor) -> Tensor:
    """Mean squared difference of margins, over all pairs of documents of a list.

    Hofstätter et al. 2020. It is twice the variance of logits minus scores.
    """
    known = scores.isfinite()
    gaps = (logits - scores).masked_fill(~known, 0.0)
    count = known.sum(1, keepdim=True)
    gaps = (gaps - gaps.sum(1, keepdim=True) / count).masked_fill(~known, 0.0)
    return 2 * (gaps.square().sum(1) / count[:, 0]).mean()


def contrastive(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log share of the relevant documents (label above 0) in the softmax over a list."""
    known, good = labels.isfinite(), labels > 0
    shares = log_softmax(logits, known).masked_fill(~good, -torch.inf).logsumexp(1)
    return -shares[good.any(1)].sum() / len(logits)


def pointwise(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each document by itself."""
    known = labels.isfinite()
    return F.binary_cross_entropy_with_logits(logits[known], (labels[known] > 0).float())


def lambda_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """LambdaLoss of sentence-transformers over the known documents; labels below 0 count as 0."""
    known = labels.isfinite()
    kept = [row[on] for row, on in zip(labels, known, strict=True)]
    # It asks a model for its logits; this one has them already.
    flat = torch.cat([row[on] for row, on in zip(logits, known, strict=True)])
    given = iter(flat[at : at + len(logits)] for at in range(0, len(flat), len(logits)))
    model: Any = _Given(device=logits.device, parts=given)
    docs = [[""] * len(row) for row in kept]
    loss: Tensor = LambdaLoss(model)([[""] * len(docs), docs], [row.clamp(min=0) for row in kept])
    return loss


class _Given(SimpleNamespace):
    num_labels = 1

    def preprocess(self, pairs: Sequence[Any], **_: Any) -> dict[str, Any]:
        return {}

    def __call__(self, features: Any) -> dict[str, Tensor]:
        return {"scores": next(self.parts)}


def log_softmax(logits: Tensor, known: Tensor) -> Tensor:
    """Log of the softmax over the known documents of each list."""
    return logits.masked_fill(~known, -1e4).log_softmax(1)


FROM_SCORES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "listwise_kl": listwise_kl,
    "margin_mse": margin_mse,
}
FROM_LABELS: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "contrastive": contrastive,
    "pointwise": pointwise,
    "lambda": lambda_loss,
}


class MixedLoss(nn.Module):
    """A weighted sum of losses, from one forward pass. Called by CrossEncoderTrainer."""

    def __init__(self, model: nn.Module, weights: Mapping[str, float], scale: float = 1.0) -> None:
        """Set the weight of each loss; the teacher's scores are multiplied by `scale`."""
        super().__init__()
        self.model, self.weights, self.scale = model, dict(weights), scale

    def forward(
        self, features: Sequence[dict[str, Tensor]], targets: Tensor, **_: Any
    ) -> dict[str, Tensor]:
        """Score the documents; targets are float32[2, lists, documents], scores and labels."""
        scores, labels = targets
        there = features[0].pop("there")
        logits = torch.zeros_like(scores)
        logits[there] = self.model(dict(features[0]))["scores"].view(-1).float()
        losses = {}
        for name, weight in self.weights.items():
            table, goal = (FROM_SCORES, scores) if name in FROM_SCORES else (FROM_LABELS, labels)
            rows = goal.isfinite().any(1)
            share = rows.float().mean()
            known = goal[rows] * (self.scale if table is FROM_SCORES else 1.0)
            loss = table[name](logits[rows], known) if rows.any() else logits.sum() * 0
            losses[name] = weight * share * loss
        return losses
