"""Long documents, end to end: scored by windows, kept in the store, and ranked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from jobs.runtime.errors import DONE, REFUSED
from jobs.store.__main__ import main as store_main
from tests.conftest import SENTENCES
from tests.spark.conftest import Job
from tests.spark.test_rerank import read, record
from udfs.devices import TaskSlot
from udfs.limits import Peak
from udfs.scorers.cross_encoder import Scorer
from udfs.scorers.passages import PassageScorer
from udfs.spec import PassageSpec, ScorerSpec
from udfs.udf import PeakParam, rerank_rows, score_schema

QUERIES = ("how long does a flea live", "reset the earbuds", "why does bread rise")
DOCS = [" ".join(SENTENCES[at:] + SENTENCES[:at]) for at in range(6)] + SENTENCES[:2]
PASSAGES = PassageSpec(size=40, stride=20)


def pairs() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"query_id": f"q{q}", "query": query, "doc_id": f"d{d}", "doc": doc, "label": d % 2}
            for q, query in enumerate(QUERIES)
            for d, doc in enumerate(DOCS)
        ]
    )


def expected(folder: Path) -> pd.DataFrame:
    spec = ScorerSpec(str(folder), "", max_length=64)
    scorer = PassageScorer(Scorer.load(folder, spec, TaskSlot()), PASSAGES)
    rows = pairs()
    scores = scorer.score(rows["query"].tolist(), rows["doc"].tolist())
    return pd.concat([rows, pd.DataFrame(scores)], axis=1)


def test_columns_of_passages_survive_the_store(
    job: Job, tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, whole, out = tmp_path / "first.jsonl", tmp_path / "whole.jsonl", tmp_path / "out"
    rows = pairs()
    rows[rows["doc_id"] != "d3"].to_json(first, orient="records", lines=True)
    rows.to_json(whole, orient="records", lines=True)
    keys: dict[str, object] = {
        "input__doc_template": None, "store__path": tmp_path / "scores",
        "passages__size": 40, "passages__stride": 20,
    }  # fmt: skip
    assert job(out, input__path=first, **keys) == DONE
    assert (
        job(out, input__path=whole, output__overwrite="true", input__label="label", **keys) == DONE
    )
    counts = record(out)["counts"]
    assert (counts["from_store"], counts["scored"]) == (len(rows) - 3, 3)
    ids, direct = ["query_id", "doc_id"], expected(tiny_bert)

    def check() -> pd.DataFrame:
        ranked = read(out)
        both = ranked.merge(direct, on=ids, suffixes=("", "_direct"))
        assert len(both) == len(direct)
        np.testing.assert_allclose(both["score"], both["logit"], atol=1e-4)
        assert both["n_passages"].tolist() == both["n_passages_direct"].tolist()
        ranges = both[["passage_start", "passage_end"]].itertuples(index=False)
        assert [(best["start"], best["end"]) for best in both["best_passage"]] == [
            *map(tuple, ranges)
        ]
        return ranked

    ranked = check()
    assert list(ranked.columns[-4:]) == ["truncated", "n_passages", "best_passage", "label"]
    assert (ranked["n_passages"] > 2).sum() == 6 * len(QUERIES)
    top = [
        direct.sort_values([by, "doc_id"]).groupby("query_id")["doc_id"].last()
        for by in ("logit", "first_logit")
    ]
    changed = int((top[0] != top[1]).sum())
    found = {"long": int((direct["n_passages"] > 1).sum()), "top1_changed": changed}
    assert record(out)["passages"] == found and changed
    said = f"{found['long']} documents of several passages; {changed} queries have another first"
    assert said in " ".join(capsys.readouterr().out.split())
    assert f"{found['long']} documents had several passages" in (out / "report.html").read_text()

    # Nothing is lost when files are merged, and nothing is scored again.
    assert (
        store_main(["compact", "--store.path", str(tmp_path / "scores"), "--store.settled", "0m"])
        == DONE
    )
    assert job(out, input__path=whole, **keys) == DONE
    assert record(out)["counts"]["from_store"] == len(rows)
    for name in ("rank", "score", "n_tokens", "n_passages"):
        tables = [table.set_index(ids)[name].sort_index() for table in (check(), ranked)]
        pd.testing.assert_series_equal(*tables)

    # Without passages it is another fingerprint, and there are no such columns.
    fingerprint = record(out)["fingerprint"]
    keys |= {"passages__size": None, "passages__stride": None}
    assert job(out, input__path=whole, **keys) == DONE
    assert record(out)["fingerprint"] != fingerprint and "passages" not in record(out)
    assert record(out)["counts"]["scored"] == len(rows)
    assert "n_passages" not in read(out).columns
    files = list(
        (tmp_path / "scores" / f"fingerprint={record(out)['fingerprint']}").rglob("*.parquet")
    )
    assert files and "n_passages" not in pd.read_parquet(files[0]).columns


def test_passages_that_cannot_be_scored_are_refused(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for keys, said in (
        ({"size": 64}, "leaves no room for a query in model.max_length=64"),
        ({"size": 20, "stride": 21}, "passages.stride=21 exceeds passages.size=20"),
        ({"stride": 21}, "passages.stride=21 exceeds passages.size=None"),
    ):
        given = {f"passages__{key}": value for key, value in keys.items()}
        assert job(tmp_path / "out", **given) == REFUSED
        assert said in capsys.readouterr().err
    given = {"passages__size": 20, "output__format": "csv"}
    assert job(tmp_path / "out", **given) == REFUSED
    assert "cannot hold best_passage" in capsys.readouterr().err
    assert job(tmp_path / "out", passages__size=20, model__backend="stub") == REFUSED
    assert "model.backend=stub" in capsys.readouterr().err


def test_executors_of_their_own_give_the_same_columns(spark: SparkSession, tiny_bert: Path) -> None:
    spec = ScorerSpec(str(tiny_bert), "", max_length=64, passages=PASSAGES)
    rows = pairs().assign(pair_key=lambda table: table["query_id"] + table["doc_id"])
    rows.loc[len(rows)] = ["q", "a", "d", None, 0, "lost"]
    given = spark.createDataFrame(rows[["pair_key", "query", "doc"]])
    peaks = spark.sparkContext.accumulator(Peak(), PeakParam())
    schema = f"pair_key string, {score_schema(spec)}"
    found = given.mapInPandas(rerank_rows(spec, peaks), schema).toPandas().set_index("pair_key")
    direct = expected(tiny_bert)
    both = found.loc[direct["query_id"] + direct["doc_id"]]
    np.testing.assert_allclose(both["first_logit"], direct["first_logit"], atol=1e-4)
    assert both["passage_end"].tolist() == direct["passage_end"].tolist()
    lost = found.loc["lost"]
    assert lost["status"] == "null_text"
    assert lost[["logit", "n_passages", "passage_end", "first_logit"]].isna().all()
