"""Truncation policies: how many tokens of each side of a pair are kept. Pure, on arrays.

Each policy takes `query: int[N]` and `doc: int[N]` (token counts without special tokens), the
limit `max_length` and `special` (special tokens a pair needs), and returns the counts to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from udfs.spec import Truncation

Counts = NDArray[np.int64]
Policy = Callable[[Counts, Counts, int, int], tuple[Counts, Counts]]


def longest_first(
    query: Counts, doc: Counts, max_length: int, special: int
) -> tuple[Counts, Counts]:
    """Cut the longer side; only if the shorter does not fit either, halve the room.

    The rule of Hugging Face `tokenizers`, and so of sentence-transformers' CrossEncoder: the
    shorter side keeps all of its tokens while the room allows, and of two halves the longer side
    gets the odd token.
    """
    room = max(max_length - special, 0)
    shorter = np.minimum(query, doc)
    longer_kept = np.where(shorter > room, shorter, np.maximum(shorter, room - shorter))
    halved = shorter + longer_kept > room
    shorter_kept = np.where(halved, room // 2, shorter)
    longer_kept = np.where(halved, room // 2 + room % 2, longer_kept)
    swap = query > doc
    fits = query + doc <= room
    kept_query = np.where(fits, query, np.where(swap, longer_kept, shorter_kept))
    kept_doc = np.where(fits, doc, np.where(swap, shorter_kept, longer_kept))
    return np.minimum(kept_query, query), np.minimum(kept_doc, doc)


def passage(query: Counts, doc: Counts, max_length: int, special: int) -> tuple[Counts, Counts]:
    """Hold the query to 3/4 of max_length, then cut the passage only: FlagEmbedding's rule.

    The query is held even when the pair as a whole would fit. Below about 16 tokens the special
    tokens can leave nothing for the passage; the query then gives way.
    """
    room = max(max_length - special, 0)
    kept_query = np.minimum(query, min(max_length * 3 // 4, max(room - 1, 0)))
    return kept_query, np.minimum(doc, room - kept_query)


POLICIES: Final[Mapping[Truncation, Policy]] = {"longest_first": longest_first, "passage": passage}
