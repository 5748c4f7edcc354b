"""Passages and the queries asked over them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

CJK = re.compile(r"[\u4e00-\u9fff]")


@dataclass
class Query:
    """One query and its candidates by source."""

    text: str
    kind: str
    positives: list[int] = field(default_factory=list)
    siblings: list[int] = field(default_factory=list)
    mined: dict[int, np.ndarray] = field(default_factory=dict)
    top_bm25: float = 1.0


@dataclass
class Pool:
    """Passages, the number of the text each was cut from, and the queries asked over them."""

    texts: list[str] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    bm25: tuple[sparse.csr_matrix, ...] = ()

    def add(self, units: Sequence[str], spans: Iterable[tuple[int, int]]) -> list[set[int]]:
        """Add spans of one text's sentences; return the passages that hold each sentence."""
        holders: list[set[int]] = [set() for _ in units]
        joint = "" if CJK.search("".join(units)) else " "
        number = self.source[-1] + 1 if self.source else 0
        for start, stop in spans:
            for i in range(start, stop):
                holders[i].add(len(self.texts))
            self.texts.append(joint.join(units[start:stop]))
            self.source.append(number)
        return holders

    def ask(self, text: str, kind: str, holders: list[set[int]], good: Sequence[int]) -> None:
        """Add a query whose answer is in the sentences `good`; the rest are its siblings."""
        positives = set().union(*(holders[i] for i in good))
        siblings = set().union(*holders) - positives
        self.queries.append(Query(text, kind, sorted(positives), sorted(siblings)))


def sentences(text: str) -> list[str]:
    """Cut at sentence ends, Chinese or English."""
    if CJK.search(text):
        return [s for s in re.findall(r"[^。！？；]+[。！？；]?", text) if len(s) > 5]
    return [s for s in re.split(r'(?<=[.!?])\s+(?=[A-Z0-9"(])', text) if len(s) > 15]


def windows(units: Sequence[str], width: int, stride: int) -> list[tuple[int, int]]:
    """Overlapping spans of `width` sentences."""
    return [(i, min(i + width, len(units))) for i in range(0, max(1, len(units) - 1), stride)]
