"""What scoring finds out about pairs, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

OK: Final = "ok"
NONFINITE: Final = "nonfinite"
OUT_OF_MEMORY: Final = "out_of_memory"


@dataclass(frozen=True)
class Forwarded:
    """What came of one batch of B rows.

    Attributes:
        logits: float32[B], raw.
        padding: int64[B], padding tokens that the layers were given with each row.
        milliseconds: time that the batch took on the device [ms].
    """

    logits: NDArray[np.float32]
    padding: NDArray[np.int64]
    milliseconds: float


@dataclass(frozen=True)
class Scores:
    """What is known of N pairs after scoring, row by row in the order of the input.

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
        """N rows that nothing is known of yet."""
        return cls(
            logit=np.full(size, np.nan, np.float32),
            n_tokens=np.zeros(size, np.int32),
            n_padded=np.zeros(size, np.int32),
            truncated=np.zeros(size, np.bool_),
            device_ms=np.zeros(size, np.float32),
            status=np.full(size, OK, np.object_),
        )
