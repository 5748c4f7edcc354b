"""Bi-encoders as teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertModel

from notebooks.embedded_model.pools import CJK

_TOKENS = 65_536  # of a batch
TRAP_LABEL = -1


class BiEncoder:
    """A BERT whose last layer is averaged; texts may need a prefix."""

    def __init__(self, folder: Path, query: str = "", passage: str = "", limit: int = 256) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
        self.model = model.eval().to(self.device)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        ends = [self.tokenizer.token_to_id(t) for t in ("<s>", "</s>", "[CLS]", "[SEP]")]
        self.first, self.last = (i for i in ends if i is not None)
        self.prefixes, self.limit = {True: query, False: passage}, limit

    def ids(self, texts: Sequence[str], query: bool) -> list[list[int]]:
        """Return token ids with the prefix and the special tokens."""
        full = [self.prefixes[query] + text for text in texts]
        encoded = self.tokenizer.encode_batch(full, add_special_tokens=False)
        return [[self.first, *e.ids[: self.limit - 2], self.last] for e in encoded]

    @torch.no_grad()
    def embed(self, texts: Sequence[str], query: bool) -> np.ndarray:
        """Return vectors of length one: float32[texts, width]."""
        ids = self.ids(texts, query)
        vectors = torch.zeros(len(ids), self.model.config.hidden_size)
        for rows, batch, mask in batches(ids, np.argsort([len(i) for i in ids]), self.device):
            vectors[torch.from_numpy(rows)] = pooled(self.hidden(batch, mask), mask).cpu()
        return vectors.numpy()

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last layer."""
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"
        ):
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()


def batches(
    ids: Sequence[list[int]], order: np.ndarray, device: torch.device, tokens: int = _TOKENS
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Yield rows, padded ids and mask; neighbours in `order` should have like lengths."""
    start = 0
    while start < len(order):
        longest, stop = 0, start
        while stop < len(order):
            longest = max(longest, len(ids[order[stop]]))
            if stop > start and longest * (stop - start + 1) > tokens:
                break
            stop += 1
        rows = order[start:stop]
        batch = np.zeros((len(rows), max(len(ids[i]) for i in rows)), dtype=np.int64)
        mask = np.zeros_like(batch)
        for at, row in enumerate(rows):
            batch[at, : len(ids[row])], mask[at, : len(ids[row])] = ids[row], 1
        yield rows, torch.from_numpy(batch).to(device), torch.from_numpy(mask).to(device)
        start = stop


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average the real tokens, at length one."""
    return F.normalize((hidden * mask[..., None]).sum(1), dim=-1)


def similarities(model: BiEncoder, lists: pd.DataFrame) -> list[np.ndarray]:
    """Return the cosines of each list's query and passages."""
    at: dict[str, int] = {}
    rows = [[at.setdefault(text, len(at)) for text in docs] for docs in lists["docs"]]
    passages = model.embed(list(at), query=False)
    queries = model.embed(lists["query"].to_list(), query=True)
    return [passages[row] @ query for query, row in zip(queries, rows, strict=True)]


def teacher_scores(
    lists: pd.DataFrame, english: list[np.ndarray], multilingual: list[np.ndarray]
) -> list[np.ndarray]:
    """Mix standardised similarities: English both and 0.3 BM25, Chinese the multilingual one.

    One unit is the spread within a list. Passages written to mislead get the list's lowest score.
    """
    chinese = np.array([bool(CJK.search(query)) for query in lists["query"]])
    mixed: list[np.ndarray] = [np.zeros(0)] * len(lists)
    for language in (False, True):
        rows = np.flatnonzero(chinese == language)
        if not len(rows):
            continue
        parts = [(1.0, multilingual)]
        if not language:
            parts += [(1.0, english), (0.3, lists["bm25"].to_list())]
        spread = [np.mean([np.std(part[i]) for i in rows]) for _, part in parts]
        total = [
            sum(
                w * np.asarray(part[i], dtype=np.float64) / s
                for (w, part), s in zip(parts, spread, strict=True)
            )
            for i in rows
        ]
        unit, centre = np.mean([t.std() for t in total]), np.mean([t.mean() for t in total])
        for row, values in zip(rows, total, strict=True):
            mixed[row] = (values - centre) / unit
    for values, labels in zip(mixed, lists["labels"], strict=True):
        if labels is not None:
            traps = np.asarray(labels) == TRAP_LABEL
            values[traps] = values.min()
    return mixed
