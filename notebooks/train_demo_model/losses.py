"""What a group of logits is to come to."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from train_demo_model.pools import Pool


def follow(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Follow target logits within a group and, less, in level."""
    loss = 0.7 * F.kl_div(logits.log_softmax(0), target.softmax(0), reduction="sum")
    return loss + 0.15 * F.smooth_l1_loss(logits, target)


def lexical_target(pool: Pool, number: int, chosen: list[int]) -> torch.Tensor:
    """Turn BM25 scores, as shares of the query's best, into target logits."""
    query_terms, doc_terms = pool.bm25
    scores = (doc_terms[chosen] @ query_terms[number].T).toarray()[:, 0]
    return torch.from_numpy(10.0 * (scores / pool.queries[number].top_bm25 - 0.6)).float()


def label_loss(logits: torch.Tensor, good: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy over the group, with a share of plain per-pair cross-entropy."""
    inside = logits.logsumexp(0) - logits.masked_fill(~good, -1e4).logsumexp(0)
    return inside + 0.5 * F.binary_cross_entropy_with_logits(logits, good.float())
