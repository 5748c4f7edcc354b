"""What every scorer offers, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

OK: Final = "ok"
NONFINITE: Final = "nonfinite"
OUT_OF_MEMORY: Final = "out_of_memory"


@dataclass(frozen=True)
class Scores:
    """Scores of N pairs, row by row in the order of the input.

    Attributes:
        logit: float32[N], raw logit; NaN unless status is `ok`.
        n_tokens: int32[N], tokens the model was given, special tokens included.
        n_padded: int32[N], padding tokens the model was given with the pair.
        truncated: bool[N], whether a token was cut.
        device_ms: float32[N], the pair's share, by tokens, of its batch's time on the device [ms].
        status: object[N], `ok`, `nonfinite` or `out_of_memory`.
    """

    logit: NDArray[np.float32]
    n_tokens: NDArray[np.int32]
    n_padded: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    device_ms: NDArray[np.float32]
    status: NDArray[np.object_]

    @classmethod
    def empty(cls, size: int) -> Scores:
        """Return N rows that are not scored yet."""
        return cls(
            logit=np.full(size, np.nan, np.float32),
            n_tokens=np.zeros(size, np.int32),
            n_padded=np.zeros(size, np.int32),
            truncated=np.zeros(size, np.bool_),
            device_ms=np.zeros(size, np.float32),
            status=np.full(size, OK, np.object_),
        )


class PairScorer(Protocol):
    """Scores pairs of texts in two stages, so that one can run while the other waits."""

    @property
    def encodes_ahead(self) -> bool:
        """Whether a thread should encode the next window while this one is scored."""
        ...

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> Any:
        """Prepare N pairs for `score_encoded`; may run in another thread than that."""
        ...

    def score_encoded(self, pairs: Any) -> Scores:
        """Score what `encode` returned."""
        ...
