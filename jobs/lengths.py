"""Token lengths of a sample of the input, for `--dry-run`: the tokenizer is loaded, no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pyspark.sql import functions as F

from jobs.checks import keyed
from jobs.tables import Pairs
from udfs.encode import PairEncoder
from udfs.spec import ScorerSpec

_SAMPLE: Final = 5_000  # pairs
_LONGEST: Final = 20_000  # characters of a text that are looked at, so that a sample stays small
_SIDES: Final = ("query", "doc")


@dataclass(frozen=True)
class LengthProfile:
    """Lengths of sampled pairs before anything is cut, special tokens included [tokens]."""

    sampled: int
    mean: float
    mean_scored: float
    p50: float
    p95: float
    p99: float
    share_cut: float


def profile_lengths(pairs: Pairs, folder: Path, spec: ScorerSpec) -> LengthProfile | None:
    """Tokenise up to 5,000 pairs, chosen by their keys, so the same ones every time.

    Returns:
        None if no row of the input can be scored.
    """
    rows = (
        keyed(pairs)
        .where(F.isnotnull("pair_key"))
        .select("pair_key", *(F.substring(side, 1, _LONGEST).alias(side) for side in _SIDES))
        .orderBy("pair_key")
        .limit(_SAMPLE)
        .collect()
    )
    if not rows:
        return None
    encoder = PairEncoder.load(folder, spec)
    queries, docs = [row["query"] for row in rows], [row["doc"] for row in rows]
    lengths = encoder.lengths(queries, docs)
    encoded = encoder.encode(queries, docs)
    p50, p95, p99 = np.percentile(lengths, [50, 95, 99])
    return LengthProfile(
        sampled=len(rows),
        mean=float(lengths.mean()),
        mean_scored=float(encoded.lengths.mean()),
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        share_cut=float(encoded.truncated.mean()),
    )
