"""The bi-encoder that is distilled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer


def pooled(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens, at length one."""
    return F.normalize((hidden.float() * mask[..., None]).sum(1), dim=-1)


class Teacher:
    """The bi-encoder: unit vectors by mean pooling."""

    def __init__(self, folder: Path) -> None:
        """Load model and tokenizer."""
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def encode(self, texts: Sequence[str], limit: int = 256) -> np.ndarray:
        """Embed texts, longest first."""
        out = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            batch = self.tokenizer([texts[i] for i in part], max_length=limit, **options)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = self.model(**batch).last_hidden_state
            out[part] = pooled(hidden, batch["attention_mask"]).numpy()
        return out


def embed(teacher: Teacher, texts: list[str], cache: Path) -> np.ndarray:
    """Return the teacher's vectors; the processes share the work, a file keeps it."""
    if cache.exists():
        return np.load(cache)
    rank, world = dist.get_rank(), dist.get_world_size()
    vectors = np.zeros((len(texts), teacher.model.config.hidden_size), dtype=np.float32)
    vectors[rank::world] = teacher.encode(texts[rank::world])
    dist.all_reduce(torch.from_numpy(vectors))
    if not rank:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, vectors)
    return vectors
