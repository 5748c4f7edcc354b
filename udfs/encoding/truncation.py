"""Truncation policies: how many tokens of each side of a pair are kept. Pure, on arrays.

Each policy takes `query: int[N]` and `doc: int[N]` (token counts without special tokens), the
limit `max_length` and `special` (special tokens of a pair), and returns the counts to keep.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from udfs.spec import Truncation

Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]
Policy = Callable[[Counts, Counts, int, int], tuple[Counts, Counts]]


def longest_first(
    query: Counts, doc: Counts, max_length: int, special: int
) -> tuple[Counts, Counts]:
    """Cut the longer side; where the shorter one exceeds half the room, give each side half.

    The rule of Hugging Face `tokenizers`, and so of sentence-transformers' CrossEncoder. Of two
    halves the longer side gets the odd token (the document where both are equal).
    """
    room = max(max_length - special, 0)
    half = room // 2
    doc_longer = doc >= query
    kept_query = np.where(doc_longer, np.minimum(query, half), room - np.minimum(doc, half))
    kept_doc = np.where(doc_longer, room - np.minimum(query, half), np.minimum(doc, half))
    fits = query + doc <= room
    return np.where(fits, query, kept_query), np.where(fits, doc, kept_doc)


def needs_longer_side(query: Counts, doc: Counts, max_length: int, special: int) -> Mask:
    """Return, bool[N], where `longest_first` depends on which of two long sides is the longer.

    Elsewhere any counts that exceed half the room lead to the same result.
    """
    room = max(max_length - special, 0)
    return (room % 2 == 1) & (np.minimum(query, doc) > room // 2)


def passage(query: Counts, doc: Counts, max_length: int, special: int) -> tuple[Counts, Counts]:
    """Hold the query to 3/4 of max_length, then cut the passage only: FlagEmbedding's rule.

    The query is held even when the pair as a whole would fit. Below about 16 tokens the special
    tokens can leave nothing for the passage; the query then gives way.
    """
    room = max(max_length - special, 0)
    kept_query = np.minimum(query, min(max_length * 3 // 4, max(room - 1, 0)))
    return kept_query, np.minimum(doc, room - kept_query)


def document(query: Counts, doc: Counts, max_length: int, special: int) -> tuple[Counts, Counts]:
    """Cut the document only, unless the query takes more than 3/4 of what a prompt leaves."""
    return passage(query, doc, max(max_length - special, 0), 0)


POLICIES: Final[Mapping[Truncation, Policy]] = {
    "longest_first": longest_first, "passage": passage, "document": document,
}  # fmt: skip
