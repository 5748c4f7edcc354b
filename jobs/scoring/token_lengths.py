"""Token lengths of a sample of the input. Loads the tokenizer, but no model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from pyspark.sql import functions as F

from jobs.input.layouts import InputTable
from udfs.encoding.prompts import make_encoder
from udfs.encoding.truncation import POLICIES, Counts
from udfs.spec import ScorerSpec, Truncation

_SAMPLE: Final = 5_000  # pairs
_LONGEST: Final = 20_000  # characters of a text that are looked at, so that a sample stays small


class Cut(NamedTuple):
    """Effect of a max_length: share of pairs that lose a token, mean tokens of a pair after it."""

    max_length: int
    share: float
    mean: float


@dataclass(frozen=True)
class SampledLengths:
    """Sampled pairs before anything is cut."""

    queries: Counts  # int64[N], tokens of each query, without special tokens
    docs: Counts  # int64[N], of each document
    special: int  # special tokens that every pair gets
    truncation: Truncation

    @property
    def whole(self) -> Counts:
        """int64[N]: tokens of each pair, special tokens included."""
        return self.queries + self.docs + self.special

    def percentile(self, percent: float) -> float:
        """Return the length that so many percent of the pairs do not exceed [tokens]."""
        return float(np.percentile(self.whole, percent))

    def cut_at(self, max_length: int) -> Cut:
        """Return the effect of a max_length [tokens]."""
        policy = POLICIES[self.truncation]
        queries, docs = policy(self.queries, self.docs, max_length, self.special)
        kept = queries + docs + self.special
        return Cut(max_length, float((kept < self.whole).mean()), float(kept.mean()))


def sample_lengths(pairs: InputTable, folder: Path, spec: ScorerSpec) -> SampledLengths | None:
    """Tokenise up to 5,000 pairs, chosen by their keys, so the same ones every time.

    Of a longer text the first 20,000 characters are, and its tokens estimated by them. None if no
    row of the input can be scored.
    """
    starts = [F.substring(side, 1, _LONGEST) for side in ("query", "doc")]
    times = [F.greatest(F.length(side) / _LONGEST, F.lit(1.0)) for side in ("query", "doc")]
    rows = (
        pairs.rows.where(F.isnotnull("pair_key"))
        .select("pair_key", *starts, *times)
        .orderBy("pair_key")
        .limit(_SAMPLE)
        .collect()
    )
    if not rows:
        return None
    encoder = make_encoder(folder, spec)
    _, queries, docs, *factors = zip(*rows, strict=True)
    counted = zip(encoder.count_tokens(queries, docs), factors, strict=True)
    of_queries, of_docs = ((found * np.array(factor)).astype(np.int64) for found, factor in counted)
    return SampledLengths(of_queries, of_docs, encoder.special, spec.truncation)
