"""Queries made out of the passages themselves."""

from __future__ import annotations

import re

import numpy as np

from train_demo_model.pools import Pool, Query

FORMS = (
    "what is {}|{} definition|what does {} mean|define {}|{}|who is {}|what are {}"
    "|how does {} work|facts about {}|what causes {}"
)
DEFINES = re.compile(r"^(?:an? |the )?((?:[\w'-]+ ){1,4}?)(?:\([^)]*\) )?(?:is|are|was) ", re.I)


def add_pseudo_queries(pool: Pool, rng: np.random.Generator) -> None:
    """Make English queries out of passages: definitions, keyword picks, sentences."""
    forms = FORMS.split("|")
    for i, text in enumerate(pool.texts):
        words, found = text.split(), DEFINES.match(text)
        if found and rng.random() < 0.8:
            form = forms[rng.integers(len(forms))]
            pool.queries.append(Query(form.format(found.group(1).strip()), "what-is", [i]))
        if len(words) > 8 and rng.random() < 0.3:
            long = [k for k, w in enumerate(words) if len(w) > 4] or [0]
            picks = rng.choice(long, min(len(long), int(rng.integers(2, 6))), replace=False)
            start = int(rng.integers(len(words) - 5))
            chosen = sorted(picks) if rng.random() < 0.6 else range(start, start + 5)
            query = re.sub(r"[^\w' -]", "", " ".join(words[k] for k in chosen))
            pool.queries.append(Query(query, "keywords", [i]))
        if len(words) < 30 and rng.random() < 0.2:
            near = [j for j in range(i - 3, i + 4) if 0 <= j < len(pool.texts) and j != i]
            same = [j for j in near if pool.source[j] == pool.source[i]]
            pool.queries.append(Query(text, "sentence", same))


def add_cloze(pool: Pool, rng: np.random.Generator) -> None:
    """Make Chinese queries of one or two short spans cut out of a passage."""
    for i in rng.choice(len(pool.texts), len(pool.texts) // 5, replace=False):
        parts = [p for p in re.split(r"[^\u4e00-\u9fff]+", pool.texts[i]) if len(p) > 3]
        if not parts:
            continue
        picks = [parts[k] for k in rng.integers(len(parts), size=int(rng.integers(1, 3)))]
        text = " ".join(p[: int(rng.integers(4, 11))] for p in picks)
        near = range(max(0, i - 30), min(len(pool.texts), i + 31))
        same = [j for j in near if pool.source[j] == pool.source[i]]
        holds = [j for j in same if all(p in pool.texts[j] for p in text.split())]
        pool.queries.append(Query(text, "zh-cloze", holds, sorted(set(same) - set(holds))))


def thin(pool: Pool, share: float, rng: np.random.Generator) -> list[int]:
    """Keep every real question and a share of the pseudo-queries; return which."""
    real = {"wikiqa", "xquad", "nfcorpus", "zh"}
    keep = [i for i, q in enumerate(pool.queries) if q.kind in real or rng.random() < share]
    pool.queries = [pool.queries[i] for i in keep]
    return keep
