"""What stands in for a model must treat pairs as a model does: each for itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.conftest import SENTENCES
from udfs.devices import TaskSlot
from udfs.encoding.pairs import PairEncoder
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import ScorerSpec

QUERIES = [SENTENCES[i % 3] for i in range(25)]
DOCS = [SENTENCES[i % 8] * (1 + i % 4) for i in range(25)]


def spec(folder: Path, **changes: object) -> ScorerSpec:
    given = {"max_length": 64, "backend": "tokenizer", **changes}
    return ScorerSpec(str(folder), "", **given)  # type: ignore[arg-type]


def test_the_tokenizer_backend_reads_tokens_and_runs_no_model(tiny_bert: Path) -> None:
    found = Scorer.load(tiny_bert, spec(tiny_bert), TaskSlot(1)).score(QUERIES, DOCS)
    pairs = PairEncoder(tiny_bert, spec(tiny_bert)).encode(QUERIES, DOCS)
    np.testing.assert_array_equal(found.n_tokens, pairs.lengths)
    np.testing.assert_array_equal(found.truncated, pairs.truncated)
    assert found.truncated.any() and not found.truncated.all()
    assert not found.n_padded.any()


def test_a_checksum_is_a_pairs_own_whatever_its_batch(tiny_bert: Path) -> None:
    loaded = [
        Scorer.load(tiny_bert, spec(tiny_bert, max_pairs=rows), TaskSlot(1)) for rows in (1, 25)
    ]
    alone, together = (scorer.score(QUERIES, DOCS).logit for scorer in loaded)
    np.testing.assert_array_equal(alone, together)
    texts = len({*zip(QUERIES, DOCS, strict=True)})
    assert len(set(alone.tolist())) == texts
    assert (np.abs(alone) <= 8.0).all()
