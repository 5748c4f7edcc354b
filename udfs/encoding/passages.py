"""Long documents as windows over their tokens, each a pair with the query."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udfs.encoding.pairs import EncodedPairs, PairEncoder
from udfs.encoding.truncation import Counts
from udfs.spec import PassageSpec


@dataclass(frozen=True)
class Passages:
    """N pairs as W windows, those of a document in a row and in its order."""

    windows: EncodedPairs  # W pairs
    ranges: NDArray[np.int32]  # [W, 2], start and end of each in its document [characters]
    encoded: Counts  # int64[N], windows of each document among these, at least 1
    counts: Counts  # int64[N], windows that each document has


def encode_passages(
    encoder: PairEncoder, queries: Sequence[str], docs: Sequence[str], spec: PassageSpec
) -> Passages:
    """Tokenise N pairs, each document once and as a whole, and lay windows over it.

    A window that does not fit into max_length beside its query is cut, as any pair is.
    """
    pairs, ranges, encoded, counts = [], [], [], []
    tokens = zip(encoder.query_tokens(queries), encoder.ranged_tokens(docs), strict=True)
    for query, (ids, characters) in tokens:
        starts = window_starts(len(ids), spec)
        counts.append(len(starts))
        starts = starts[:1] if spec.aggregate == "first" else starts
        encoded.append(len(starts))
        for start in starts:
            inside = characters[start : start + spec.size]
            pairs.append((query, ids[start : start + spec.size]))
            ranges.append((inside[0, 0], inside[-1, 1]) if len(inside) else (0, 0))
    windows = encoder.join([query for query, _ in pairs], [window for _, window in pairs])
    places = np.array(ranges, np.int32).reshape(-1, 2)
    return Passages(windows, places, np.array(encoded, np.int64), np.array(counts, np.int64))


def window_starts(count: int, spec: PassageSpec) -> list[int]:
    """Return where windows over so many tokens begin; the last one ends with the document."""
    last = max(count - spec.size, 0)
    return [*range(0, last, spec.stride), last]
