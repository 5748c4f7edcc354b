"""How the scoring UDF handles the batches that Spark hands it; no session is needed for that."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SENTENCES
from tests.unit.test_scorer import Lengths
from udfs.encoding.pairs import Ids, PairEncoder
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import ScorerSpec
from udfs.udf import _score_window, _windows


def test_a_query_of_a_hundred_candidates_is_tokenised_once_per_window(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten queries with a hundred candidates each, in Arrow batches of 64, in windows of 256."""
    rows = range(1_000)
    queries = pd.Series([f"{SENTENCES[row // 100 % 8]} {row // 100}" for row in rows])
    docs = pd.Series([f"{SENTENCES[row % 8]} d{row}" for row in rows])
    batches = [(queries[at : at + 64], docs[at : at + 64]) for at in range(0, 1_000, 64)]
    spec = ScorerSpec(str(tiny_bert), "", max_length=64)
    encoder = PairEncoder.load(tiny_bert, spec)
    seen: Counter[str] = Counter()
    tokenise = encoder._encode

    def counting(texts: list[str]) -> list[Ids]:
        seen.update(texts)
        return tokenise(texts)

    monkeypatch.setattr(encoder, "_encode", counting)
    scorer = Scorer(encoder, Lengths(), spec)
    windows = list(_windows(iter(batches), 256))
    wanted: Counter[str] = Counter()
    for window in windows:
        wanted.update(set(pd.concat([query for query, _ in window])))
    frames = [frame for window in windows for frame in _score_window(scorer, window)]
    assert len(windows) == 4
    assert {query: seen[query] for query in wanted} == wanted
    assert all(seen[doc] == 1 for doc in docs)
    expected = encoder.encode(queries.tolist(), docs.tolist()).lengths
    np.testing.assert_array_equal(pd.concat(frames)["logit"].to_numpy(np.float32), expected)
