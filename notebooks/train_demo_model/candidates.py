"""Hard candidates of a query: by words, and by what the teacher takes for near."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import sparse

from train_demo_model.pools import CJK, Pool, Query
from train_demo_model.recipes import LEXICAL, POSITIVE, SIBLING, TEACHER, TOP

WORD = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]")


def terms(text: str) -> list[str]:
    """Words for BM25: English words without a plural s, pairs of Chinese characters."""
    tokens = WORD.findall(text.lower())
    pairs = [a + b for a, b in pairwise(tokens) if CJK.match(a + b)]
    words = [t[:-1] if len(t) > 3 and t.endswith("s") else t for t in tokens if not CJK.match(t)]
    return words + pairs


def bm25(passages: Sequence[str], queries: Sequence[str]) -> tuple[sparse.csr_matrix, ...]:
    """Return query and passage matrices whose product is the BM25 score."""
    index: dict[str, int] = {}
    counted = [Counter(terms(t)) for t in passages]
    cells = ((i, t, n) for i, c in enumerate(counted) for t, n in c.items())
    rows = [(i, index.setdefault(t, len(index)), n) for i, t, n in cells]
    doc, term, count = (np.array(x) for x in zip(*rows, strict=True))
    length = np.array([sum(c.values()) for c in counted])
    seen = np.bincount(term, minlength=len(index))
    idf = np.log1p((len(passages) - seen + 0.5) / (seen + 0.5))
    norm = 0.9 * (0.6 + 0.4 * length[doc] / length.mean())
    weight = idf[term] * count * 1.9 / (count + norm)
    docs = sparse.csr_matrix((weight, (doc, term)), (len(passages), len(index)), dtype=np.float32)
    asked = [(i, index[t]) for i, q in enumerate(queries) for t in set(terms(q)) if t in index]
    row, column = np.array(asked).T
    ones = np.ones(len(row), dtype=np.float32)
    return sparse.csr_matrix((ones, (row, column)), (len(queries), len(index))), docs


def best(scores: np.ndarray) -> np.ndarray:
    """Column numbers of the TOP best scores of each row, in no particular order."""
    return np.argpartition(-scores, TOP, axis=1)[:, :TOP]


def mine(pool: Pool, asked: np.ndarray | None = None, dense: np.ndarray | None = None) -> None:
    """Attach hard candidates by BM25 and, where there are vectors, by the teacher."""
    query_terms, doc_terms = pool.bm25 = bm25(pool.texts, [q.text for q in pool.queries])
    for start in range(0, len(pool.queries), 500):
        part = slice(start, start + 500)
        scores = (query_terms[part] @ doc_terms.T).toarray()
        lexical = best(scores)
        near = [None] * len(lexical) if asked is None else best(asked[part] @ dense.T)
        rows = zip(pool.queries[part], lexical, near, scores.max(1), strict=True)
        for query, words, meaning, top in rows:
            query.top_bm25 = float(top) or 1.0
            banned = {pool.source[i] for i in query.positives} if asked is None else set()
            query.mined[LEXICAL] = np.array([i for i in words if pool.source[i] not in banned])
            if meaning is not None:
                query.mined[TEACHER] = meaning


def draw(pool: Pool, query: Query, plan: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Pick a query's candidates by the plan; no passage twice."""
    lists = {POSITIVE: query.positives, SIBLING: query.siblings, **query.mined}
    chosen: list[int] = []
    for source in plan:
        options = lists.get(source, [])
        if source == LEXICAL and len(options) and rng.random() < 0.3:
            options = options[: TOP // 4]
        pick = int(rng.choice(options)) if len(options) else int(rng.integers(len(pool.texts)))
        while pick in chosen:
            pick = int(rng.integers(len(pool.texts)))
        chosen.append(pick)
    return chosen
