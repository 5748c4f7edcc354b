"""Candidate lists: what a query's passages are drawn from, and traps among them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from notebooks.embedded_model.pools import CJK, Bm25, Pool, Query, is_held_out
from notebooks.embedded_model.readers import READERS, add_pseudo

SIZE: Final = 16  # candidates of a training list
HELD_OUT_SIZE: Final = 40
# Most queries of a source, and how many without labels are made of its passages.
MOST: Final[Mapping[str, int]] = {
    "medquad": 7000, "selqa": 9000, "policyqa": 2500, "covidqa": 9000, "wikipedia": 11000,
    "xquad": 9000, "cmrc": 8000, "cmrc_dev": 2500, "drcd": 3000, "drcd_test": 3000, "crud": 8000,
}  # fmt: skip
PSEUDO: Final[Mapping[str, int]] = {"medquad": 4000, "covidqa": 1200, "wikipedia": 4000}
HELD_OUT: Final = 60  # queries of a source
TRAP: Final = -1  # label of a passage that was written to mislead
_REPEATS: Final = (
    "{}", "Question: {} Does anybody know?", "{} I have been wondering about this for a while.",
    "This page lists questions that readers ask often, among them: {}", "Re: {} Same problem here.",
)  # fmt: skip
_REPEATS_ZH: Final = (
    "{}", "请问：{}有人知道吗？", "{}我也一直想知道，求解答。", "本页收录读者常见的问题，例如：{}",
    "关于“{}”的讨论，尚无回复。",
)  # fmt: skip


def make_lists(data: Path, seed: int = 7) -> Iterator[dict[str, Any]]:
    """Yield one row a query: query, docs, labels, bm25, split, source.

    Labels are 1 and 0, -1 for a trap, or None where there are none.
    """
    for source, read in READERS.items():
        rng = random.Random(f"{seed} {source}")
        pool = read(data)
        bm25 = Bm25(pool.texts)
        add_pseudo(pool, PSEUDO.get(source, 0), bm25, rng)
        rng.shuffle(pool.queries)
        held = [q for q in pool.queries if q.held_out][:HELD_OUT]
        kept = [q for q in pool.queries if not q.held_out][: MOST[source]]
        for query in held + kept:
            yield {"source": source, **draw(pool, query, bm25, rng)}


def draw(pool: Pool, query: Query, bm25: Bm25, rng: random.Random) -> dict[str, Any]:
    """Draw the candidates of a query: positives, siblings, BM25's best, some at random, traps."""
    size = HELD_OUT_SIZE if query.held_out else SIZE
    scores = bm25.scores(query.text)
    top = np.argsort(-scores, kind="stable")[:150]
    usable = [int(i) for i in top if query.held_out or not is_held_out(pool.documents[i])]
    if query.held_out:
        chosen = list(dict.fromkeys([*query.positives[:2], *usable]))[:size]
        traps = make_traps(pool, query, rng)[:1] if rng.random() < 0.3 else []
    else:
        traps = make_traps(pool, query, rng)
        siblings = rng.sample(query.siblings, min(4, len(query.siblings)))
        first = [*rng.sample(query.positives, min(2, len(query.positives))), *siblings]
        near = rng.sample(usable[:20], min(6, len(usable[:20])))
        far = rng.sample(usable[20:], min(4, len(usable[20:])))
        some = [rng.randrange(len(pool.texts)) for _ in range(size)]
        fit = [i for i in some if not is_held_out(pool.documents[i])]
        chosen = list(dict.fromkeys([*first, *near, *far, *fit]))[: size - len(traps)]
        rng.shuffle(chosen)
    texts = [pool.texts[i] for i in chosen] + traps
    labels = [int(i in query.positives) for i in chosen] + [TRAP] * len(traps)
    level = [float(scores[i]) for i in chosen] + [float(scores[top[0]])] * len(traps)
    return {
        "query": query.text, "docs": texts, "bm25": level,
        "labels": labels if query.positives else None,
        "split": "dev" if query.held_out else "train",
    }  # fmt: skip


def make_traps(pool: Pool, query: Query, rng: random.Random) -> list[str]:
    """Write passages that mislead: the question repeated, the answer for another name."""
    if not query.positives or rng.random() < 0.4:
        return []
    traps = []
    if rng.random() < 0.7:
        traps.append(rng.choice(_REPEATS_ZH if CJK.search(query.text) else _REPEATS))
        traps[0] = traps[0].format(query.text)
    answer = pool.texts[query.positives[0]]
    if query.name and query.name in answer and rng.random() < 0.7:
        traps.append(answer.replace(query.name, rng.choice(pool.names or [query.name])))
        if query.name in traps[-1]:
            traps.pop()
    return traps
