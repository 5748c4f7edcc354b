"""Checksums in place of a model, to time everything else of a job."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from udfs.encoding.pairs import Batch
from udfs.forward.base import BatchOutput
from udfs.scorers.base import Scores

_MULTIPLIER: Final = 2_654_435_761  # Knuth's, of multiplicative hashing


class StubScorer:
    """Backend `stub`: scores by a checksum of the texts, without a tokenizer."""

    encodes_ahead: Final = False

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> list[tuple[str, str]]:
        """Return the pairs as they are."""
        return list(zip(queries, docs, strict=True))

    def score_encoded(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """Return a logit in [-8, 8) per pair; n_tokens counts words."""
        checksums = [zlib.crc32(d.encode(), zlib.crc32(q.encode())) for q, d in pairs]
        scores = Scores.empty(len(pairs))
        scores.logit[:] = np.array(checksums, dtype=np.float64) / 2**28 - 8.0
        scores.n_tokens[:] = [q.count(" ") + d.count(" ") + 2 for q, d in pairs]
        return scores


class StubModel:
    """Backend `tokenizer`: a checksum of the token ids in place of the forward pass."""

    def forward(self, batch: Batch) -> BatchOutput:
        """Return logits in [-8, 8) that do not depend on the batch; no padding is computed."""
        start = time.perf_counter()
        ids = np.where(batch.attention_mask == 1, batch.input_ids + 1, 0).astype(np.uint64)
        place = np.arange(1, ids.shape[1] + 1, dtype=np.uint64)
        sums = (ids * place).sum(1) * np.uint64(_MULTIPLIER) % np.uint64(2**32)
        logits: NDArray[np.float32] = (sums / 2**28 - 8.0).astype(np.float32)
        nothing = np.zeros(len(ids), np.int64)
        return BatchOutput(logits, nothing, (time.perf_counter() - start) * 1000.0)
