"""Passages, the queries asked over them, and BM25."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise

import numpy as np
from scipy import sparse

CJK = re.compile(r"[\u3400-\u9fff]")
_WORD = re.compile(r"[a-z0-9]+|[\u3400-\u9fff]")
_HELD_OUT = 5  # percent of the documents


@dataclass(frozen=True)
class Query:
    """A query; without positives it has no labels. Indices are those of the pool's passages."""

    text: str
    document: str  # what the split goes by
    positives: tuple[int, ...] = ()
    siblings: tuple[int, ...] = ()  # of the same document, known not to answer
    name: str = ""  # what the query asks about, for traps

    @property
    def held_out(self) -> bool:
        """Whether the query is of a document that is kept from training."""
        return is_held_out(self.document)


@dataclass
class Pool:
    """The passages of one source, the document of each, and its queries."""

    source: str
    texts: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # that may replace each other in traps

    def add(self, document: str, passages: Iterable[str]) -> list[int]:
        """Add passages of a document; return their indices."""
        start = len(self.texts)
        self.texts.extend(text for text in passages if text.strip())
        self.documents += [document] * (len(self.texts) - start)
        return list(range(start, len(self.texts)))


def is_held_out(document: str) -> bool:
    """Tell by its hash whether a document is kept from training."""
    return int(sha256(document.encode()).hexdigest()[:8], 16) % 100 < _HELD_OUT


def sentences(text: str) -> list[str]:
    """Cut at sentence ends, Chinese or English."""
    if CJK.search(text):
        return [part for part in re.findall(r"[^。！？；]+[。！？；]?", text) if len(part) > 5]
    return [part for part in re.split(r'(?<=[.!?])\s+(?=[A-Z0-9"(])', text) if len(part) > 15]


def windows(text: str, width: int = 3, most: int = 900) -> list[str]:
    """Cut a text into windows of sentences that overlap by one; characters beyond `most` go."""
    units, joint = sentences(text), "" if CJK.search(text) else " "
    starts = range(0, max(1, len(units) - 1), width - 1)
    return [joint.join(units[start : start + width])[:most] for start in starts]


def terms(text: str) -> list[str]:
    """Words for BM25: English words without a plural s, pairs of Chinese characters."""
    tokens = _WORD.findall(text.lower())
    pairs = [a + b for a, b in pairwise(tokens) if CJK.match(a) and CJK.match(b)]
    words = [t[:-1] if len(t) > 3 and t.endswith("s") else t for t in tokens if not CJK.match(t)]
    return words + pairs


class Bm25:
    """BM25 (k1 = 0.9, b = 0.4) over passages."""

    def __init__(self, passages: Sequence[str]) -> None:
        self.index: dict[str, int] = {}
        counted = [Counter(terms(text)) for text in passages]
        rows = [
            (row, self.index.setdefault(term, len(self.index)), count)
            for row, counts in enumerate(counted)
            for term, count in counts.items()
        ]
        doc, term, count = np.array(rows).T
        length = np.array([counts.total() for counts in counted])
        seen = np.bincount(term, minlength=len(self.index))
        self.idf = np.log1p((len(passages) - seen + 0.5) / (seen + 0.5))
        norm = 0.9 * (0.6 + 0.4 * length[doc] / length.mean())
        weight = self.idf[term] * count * 1.9 / (count + norm)
        shape = len(passages), len(self.index)
        self.matrix = sparse.csr_matrix((weight.astype(np.float32), (doc, term)), shape).tocsc()

    def scores(self, query: str) -> np.ndarray:
        """Score every passage: float32[passages]."""
        columns = [self.index[term] for term in sorted(set(terms(query))) if term in self.index]
        return np.asarray(self.matrix[:, columns].sum(axis=1), dtype=np.float32).ravel()
