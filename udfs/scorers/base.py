"""What every scorer offers and returns; a stand-in for one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

OK: Final = "ok"
NONFINITE: Final = "nonfinite"
OUT_OF_MEMORY: Final = "out_of_memory"
#: Of backend `remote`: the server was given up before it has scored the pair. Never written.
UNANSWERED: Final = "unanswered"

# A row for each pair, in the order of the input.
_COLUMNS: Final = np.dtype(
    [
        ("logit", "f4"),  # raw; NaN unless status is `ok`
        ("n_tokens", "i4"),  # given to the model, special tokens included; 0: unknown
        ("n_padded", "i4"),  # padding tokens given to the model with the pair
        ("truncated", "?"),  # whether a token was cut
        ("device_ms", "f4"),  # the pair's share, by tokens, of its batch's time [ms]
        ("status", "O"),  # `ok`, or why there is no logit
    ]
)
#: What scorers of passages have beside them.
PASSAGES: Final = np.dtype(
    [
        *_COLUMNS.descr,
        ("n_passages", "i4"),  # windows of the document
        ("passage_start", "i4"),  # of the one with the highest logit [characters]
        ("passage_end", "i4"),
        ("first_logit", "f4"),  # of the first one
    ]
)
Scores = np.recarray[tuple[int], np.dtype[Any]]


def new_scores(size: int, status: str = OK, columns: np.dtype[Any] = _COLUMNS) -> Scores:
    """Return N rows that are not scored yet: the attributes are the columns, float32[N] etc."""
    scores = np.recarray((size,), dtype=columns)
    scores[:] = np.zeros((), columns)
    scores.logit, scores.status = np.nan, status
    return scores


@dataclass(frozen=True)
class Usage:
    """What scoring over a network has cost, and why it ended early."""

    requests: int = 0
    units: float = 0.0  # billed, where answers say so
    tokens: int = 0  # the same
    ended: str = ""  # why the server was given up, one sentence; empty: it was not
    refused: bool = False  # whether something has to be changed before it is asked again

    def __add__(self, other: Usage) -> Usage:
        """Return the sum; of two ends the one that has to be mended."""
        end = self if self.refused or (self.ended and not other.refused) else other
        return Usage(
            self.requests + other.requests, self.units + other.units, self.tokens + other.tokens,
            end.ended, end.refused,
        )  # fmt: skip

    def said(self) -> str:
        """Return the costs in words, as far as they are known."""
        known = ((self.requests, "requests"), (self.units, "search units"), (self.tokens, "tokens"))
        return ", ".join(f"{count:,.0f} {what}" for count, what in known if count)


class PairScorer(Protocol):
    """Scores pairs of texts in two stages, so that one can run while the other waits."""

    encodes_ahead: bool
    """Whether a thread should encode the next window while this one is scored."""

    @property
    def rescored(self) -> float:
        """Share of all pairs so far that were scored again in float32."""
        ...

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> Any:
        """Prepare N pairs for `score_encoded`; may run in another thread than that."""
        ...

    def score_encoded(self, pairs: Any) -> Scores:
        """Score what `encode` returned."""
        ...


class TextScorer:
    """What scorers that read texts have in common: there is nothing to encode."""

    encodes_ahead = False
    rescored = 0.0

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> list[tuple[str, str]]:
        """Return the pairs as they are."""
        return list(zip(queries, docs, strict=True))


class StubScorer(TextScorer):
    """Backend `stub`: scores by a checksum of the texts, to time everything else of a job."""

    def score_encoded(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """Return a logit in [-8, 8) per pair; n_tokens counts words."""
        checksums = [zlib.crc32(d.encode(), zlib.crc32(q.encode())) for q, d in pairs]
        scores = new_scores(len(pairs))
        scores.logit = np.array(checksums, dtype=np.float64) / 2**28 - 8.0
        scores.n_tokens = [q.count(" ") + d.count(" ") + 2 for q, d in pairs]
        return scores
