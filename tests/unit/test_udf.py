"""How the scoring UDF handles the batches that Spark hands it; no session is needed for that."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark import SparkFiles

from tests.conftest import SENTENCES
from tests.unit.test_scorer import Lengths
from udfs.encoding.pairs import Ids, PairEncoder
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import ScorerSpec
from udfs.udf import model_folder, rerank_rows, score_batches


@pytest.mark.parametrize("ahead", [False, True])
def test_a_query_of_a_hundred_candidates_is_tokenised_once_per_window(
    ahead: bool, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten queries with a hundred candidates each, in Arrow batches of 64, in windows of 256."""
    rows = range(1_000)
    queries = pd.Series([f"{SENTENCES[row // 100 % 8]} {row // 100}" for row in rows])
    docs = pd.Series([f"{SENTENCES[row % 8]} d{row}" for row in rows])
    batches = [(queries[at : at + 64], docs[at : at + 64]) for at in range(0, 1_000, 64)]
    spec = ScorerSpec(str(tiny_bert), "", max_length=64)
    encoder = PairEncoder(tiny_bert, spec)
    seen: Counter[str] = Counter()
    tokenise = encoder._encode

    def counting(texts: list[str]) -> list[Ids]:
        seen.update(texts)
        return tokenise(texts)

    monkeypatch.setattr(encoder, "_encode", counting)
    scorer = Scorer(encoder, lambda _: Lengths(), spec, encodes_ahead=ahead)
    wanted: Counter[str] = Counter()
    # Where a GPU would wait for it, the first window ends with the first batch.
    starts = [0, *range(64, 1_000, 256)] if ahead else range(0, 1_000, 256)
    for start, end in pairwise([*starts, 1_000]):
        wanted.update(set(queries[start:end]))
    frames = list(score_batches(scorer, iter(batches), 256))
    assert [len(frame) for frame in frames] == [len(query) for query, _ in batches]
    assert {query: seen[query] for query in wanted} == wanted
    assert all(seen[doc] == 1 for doc in docs)
    expected = encoder.encode(queries.tolist(), docs.tolist()).lengths
    np.testing.assert_array_equal(pd.concat(frames)["logit"].to_numpy(np.float32), expected)


def test_an_empty_partition_loads_no_model() -> None:
    peaks: Any = None
    assert list(rerank_rows(ScorerSpec("/no/such/model", ""), peaks)(iter([]))) == []


@pytest.mark.parametrize("ahead", [False, True])
def test_rows_without_a_text_keep_their_place(ahead: bool, tiny_bert: Path) -> None:
    spec = ScorerSpec(str(tiny_bert), "", max_length=64)
    scorer = Scorer(PairEncoder(tiny_bert, spec), lambda _: Lengths(), spec, encodes_ahead=ahead)
    batches = [
        (pd.Series(["a", None]), pd.Series(["b", "c"])),
        (pd.Series([], dtype=object), pd.Series([], dtype=object)),
        (pd.Series(["d"]), pd.Series([None])),
    ]
    frames = list(score_batches(scorer, iter(batches), 1))
    assert [frame["status"].tolist() for frame in frames] == [
        ["ok", "null_text"],
        [],
        ["null_text"],
    ]


@pytest.mark.parametrize("stage", ["encode", "score_encoded"])
def test_an_error_of_either_stage_is_raised_when_encoding_ahead(
    stage: str, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ScorerSpec(str(tiny_bert), "", max_length=64)
    scorer = Scorer(PairEncoder(tiny_bert, spec), lambda _: Lengths(), spec, encodes_ahead=True)
    original, calls = getattr(scorer, stage), []

    def failing(*given: object) -> object:
        calls.append(given)
        if len(calls) == 2:
            raise RuntimeError("the second window fails")
        return original(*given)

    monkeypatch.setattr(scorer, stage, failing)
    batches = ((pd.Series(["a"]), pd.Series(["b"])) for _ in range(5))
    with pytest.raises(RuntimeError, match="the second window fails"):
        list(score_batches(scorer, batches, 1))


def test_an_archive_is_looked_up_where_spark_unpacked_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparkFiles, "getRootDirectory", lambda: "/spark/files")
    assert model_folder(ScorerSpec("archive:model-1", "1")) == Path("/spark/files/model-1")
    assert model_folder(ScorerSpec("/models/m", "1")) == Path("/models/m")
