"""The whole job on real data with a real (tiny) model, through `main` and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs import rerank
from jobs.runtime.errors import DONE, NOT_TRACKED, REFUSED, TOO_MANY_REJECTS, UNEXPECTED
from tests.conftest import SENTENCES, Database, shared_data
from tests.sample import SAMPLE
from tests.spark.conftest import Job
from udfs.devices import TaskSlot, has_gpu
from udfs.encoding.pairs import PairEncoder
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import ScorerSpec


def read(out: Path, name: str = "ranked") -> pd.DataFrame:
    return pq.read_table(out / name).to_pandas()


def record(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "run.json").read_text())
    return content


def sample() -> pd.DataFrame:
    return pd.read_json(SAMPLE, lines=True)


def test_the_sample_from_json_to_a_ranked_table(
    job: Job, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert job(out, input__label="label") == DONE
    ranked, pairs = read(out), sample()
    assert list(ranked.columns) == [
        "query_id", "doc_id", "rank", "score", "probability", "retrieval_rank",
        "retrieval_score", "rank_change", "n_tokens", "truncated", "label", "kind", "language",
    ]  # fmt: skip
    assert ranked["score"].dtype == np.float32
    assert len(ranked) == len(pairs)

    # Scores are those of the scorer by itself, on the rendered texts.
    spec = ScorerSpec(str(tiny_bert), "", max_length=64)
    docs = [f"{t}\n{b}" if t else b for t, b in zip(pairs["title"], pairs["body"], strict=True)]
    alone = Scorer.load(tiny_bert, spec, TaskSlot(1)).score(pairs["query"].tolist(), docs)
    both = pairs[["query_id", "doc_id"]].assign(alone=alone.logit, cut=alone.truncated)
    both = both.merge(ranked, on=["query_id", "doc_id"])
    np.testing.assert_allclose(both["score"], both["alone"], rtol=1e-4, atol=1e-4)
    assert (both["truncated"] == both["cut"]).all()
    assert 0 < both["cut"].sum() < len(both)

    # The order is total: logit descending, doc_id descending in ties.
    for _, rows in ranked.groupby("query_id"):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
        order = rows.sort_values(["score", "doc_id"], ascending=False)
        assert order["rank"].tolist() == list(range(1, len(rows) + 1))
    assert (ranked["rank_change"] == ranked["retrieval_rank"] - ranked["rank"]).all()
    np.testing.assert_allclose(
        ranked["probability"], 1 / (1 + np.exp(-ranked["score"].astype(float)))
    )

    run = record(out)
    assert run["counts"] | {"truncated": 0} == {
        "input": 245, "collapsed": 0, "distinct": 245, "from_store": 0, "scored": 245,
        "ranked": 245, "cut": 0, "rejected": 0, "queries": 28, "truncated": 0,
    }  # fmt: skip
    # Python with torch in it takes more than 50 MB, in whatever worker that was.
    assert 50 < run["memory"]["process_mb"] < 10_000
    assert (run["memory"]["device_mb"] is None) == (not has_gpu())
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["queries"] == 28
    assert metrics["first_stage"]["nDCG@10"] == pytest.approx(0.6490, abs=1e-4)
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == [
        "metrics.json", "per_query", "plots", "ranked", "rejects", "report.html",
        "run.json", "scores",
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "245 pairs" in said and "nDCG@10" in said and str(out / "ranked") in said
    written = said + (out / "report.html").read_text() + (out / "metrics.json").read_text()
    for text in pairs["body"]:
        assert text not in written
    # A run without labels takes the measures of the earlier one away.
    assert job(out) == DONE
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == [
        "ranked", "rejects", "run.json", "scores",
    ]  # fmt: skip


def test_a_second_run_scores_nothing_and_new_pairs_only_themselves(
    job: Job, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert job(out) == DONE
    first = read(out)
    assert job(out) == DONE
    pd.testing.assert_frame_equal(read(out), first)
    assert record(out)["counts"]["scored"] == 0
    assert record(out)["counts"]["from_store"] == 245
    assert record(out)["memory"] is None

    more = tmp_path / "more.jsonl"
    line = {
        "query_id": "en-01",
        "query": "new?",
        "doc_id": "n",
        "title": None,
        "retrieval_score": 1,
    }
    extra = "\n".join(
        json.dumps({**line, "doc_id": f"n{i}", "body": f"new {i}"}) for i in range(10)
    )
    more.write_text(SAMPLE.read_text("utf-8") + extra + "\n", "utf-8")
    assert job(out, input__path=more) == DONE
    assert record(out)["counts"]["scored"] == 10

    # What decides a score opens a new fingerprint; what does not, does not.
    before = record(out)["fingerprint"]
    assert job(out, model__max_length=60) == DONE
    assert record(out)["counts"]["scored"] == 245
    assert record(out)["fingerprint"] != before
    assert job(out, batching__max_tokens=512, batching__window=16) == DONE
    assert record(out)["counts"]["scored"] == 0


def test_the_ranked_table_does_not_depend_on_order_partitions_or_batches(
    job: Job, spark: SparkSession, tmp_path: Path
) -> None:
    keys: list[dict[str, object]] = [
        {},
        {"batching__partitions": 7, "batching__max_tokens": 512},
        {"batching__partitions": 1, "batching__max_tokens": 8192, "batching__window": 7},
    ]
    for seed, changed in enumerate(keys[1:]):
        path = tmp_path / f"shuffled-{seed}.parquet"
        rows = sample().sample(frac=1, random_state=seed)
        spark.createDataFrame(rows).repartition(3).write.parquet(str(path))
        changed["input__path"] = path
    tables = []
    for at, extra in enumerate(keys):
        out = tmp_path / f"out-{at}"
        assert job(out, **extra) == DONE
        tables.append(read(out).sort_values(["query_id", "rank"], ignore_index=True))
    for table in tables[1:]:
        both = tables[0].merge(table, on=["query_id", "doc_id"], suffixes=("", "_other"))
        np.testing.assert_allclose(both["score"], both["score_other"], rtol=1e-4, atol=1e-4)
        # In one table's order the other's scores never rise by more than the tolerance.
        for query, rows in both.sort_values("rank").groupby("query_id"):
            assert np.diff(rows["score_other"]).max() <= 1e-4, query


def test_top_k_and_min_score_cut_and_are_counted(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert job(out, input__label="label") == DONE
    whole, metrics = read(out), record(out)["metrics"]
    limit = float(whole["score"].median())
    keys = {"ranking__top_k": 3, "ranking__min_score": limit, "input__label": "label"}
    assert job(out, **keys) == DONE
    kept = read(out)
    assert set(zip(kept["query_id"], kept["rank"], strict=True)) == {
        (row.query_id, row.rank)
        for row in whole.itertuples()
        if row.rank <= 3 and row.score >= limit
    }
    assert record(out)["counts"]["cut"] == len(whole) - len(kept)
    # Measures are those of the whole order: a cut is not a worse ranking.
    assert record(out)["metrics"] == metrics


def test_an_id_of_any_type_duplicates_and_passed_columns(
    job: Job, spark: SparkSession, tmp_path: Path
) -> None:
    rows = [
        (7, SENTENCES[0], 1, SENTENCES[1], 0.5, 3, {"a": 1}),
        (7, SENTENCES[0], 1, SENTENCES[1], 0.5, 3, {"a": 1}),
        (7, SENTENCES[0], 2, SENTENCES[2], 0.1, 1, None),
        (8, SENTENCES[3], 9, SENTENCES[1], 0.5, 2, None),
        (8, SENTENCES[3], 10, SENTENCES[1], 0.5, 2, None),
    ]
    schema = "query_id long, query string, doc_id int, doc string, retrieval_score double, "
    schema += "score int, `a.b ``c; DROP TABLE x` map<string,int>"
    spark.createDataFrame(rows, schema).write.parquet(str(tmp_path / "in.parquet"))
    out = tmp_path / "out"
    assert job(out, input__path=tmp_path / "in.parquet", input__doc_template=None) == DONE
    ranked = read(out)
    assert ranked["query_id"].tolist() == ["7", "7", "8", "8"]
    assert list(ranked.columns[-2:]) == ["input_score", "a.b `c; DROP TABLE x"]
    # Equal texts and so equal scores: "9" comes before "10", as bytes and as in trec_eval.
    assert ranked[ranked["query_id"] == "8"]["doc_id"].tolist() == ["9", "10"]
    # The first stage gave a tie as well, and ranks are derived from it in the same way.
    assert ranked[ranked["query_id"] == "8"]["retrieval_rank"].tolist() == [1, 2]
    counts = record(out)["counts"]
    assert (counts["input"], counts["collapsed"], counts["distinct"]) == (5, 1, 3)


def test_rejected_rows_are_kept_and_too_many_end_with_3(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = SAMPLE.read_text("utf-8").splitlines()[:20]
    bad = [
        json.dumps({"query_id": "x", "query": "q", "doc_id": f"b{i}", "body": " "})
        for i in range(3)
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join([*lines, *bad, '{"broken": ']), "utf-8")
    out = tmp_path / "out"
    assert job(out, input__path=source) == TOO_MANY_REJECTS
    assert "16.67% of the rows were rejected" in capsys.readouterr().err
    assert len(read(out)) == 20
    rejects = read(out, "rejects")
    assert list(rejects.columns) == ["query_id", "doc_id", "reason", "detail"]
    assert sorted(rejects["reason"]) == ["malformed_record"] + ["missing_doc"] * 3
    assert record(out)["reject_reasons"] == {"missing_doc": 3, "malformed_record": 1}
    assert job(out, input__path=source, input__max_reject_rate=0.2) == DONE


def test_no_rows_one_row_and_texts_of_megabytes(
    job: Job, spark: SparkSession, tmp_path: Path
) -> None:
    schema = "query_id string, query string, doc_id string, doc string"
    huge = [("1", "q " * 4000, "a", "flea \x00\x07 " * 700_000), ("1", "q " * 4000, "b", "flea")]
    for name, rows in (("none", []), ("one", huge[1:]), ("huge", huge)):
        spark.createDataFrame(rows, schema).write.parquet(str(tmp_path / f"{name}.parquet"))
        out = tmp_path / name
        source = tmp_path / f"{name}.parquet"
        keys = {"input__path": source, "input__doc_template": None, "input__allow_empty": "true"}
        assert job(out, **keys) == DONE
        ranked = read(out)
        assert len(ranked) == len(rows)
        assert ranked["truncated"].all()
        assert (ranked["n_tokens"] == 64).all()


def test_a_failed_run_leaves_the_former_output_as_it_was(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert job(out) == DONE
    before = read(out), record(out)

    def fail(*args: object, **keys: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(rerank, "write_ranked", fail)
    assert job(out, ranking__top_k=1) == UNEXPECTED
    assert "RuntimeError: the disk is full" in capsys.readouterr().err
    pd.testing.assert_frame_equal(read(out), before[0])
    assert record(out) == before[1]
    assert not (out / "_work").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"input__path": "/no/such.parquet"}, "does not exist"),
        ({"input__query": "question"}, "has no column question; it has: "),
        ({"model__name": "/no/model"}, "does not exist; check model.name"),
        ({"model__max_length": 500}, "exceeds the 128 positions"),
        ({"model__precision": "int16"}, "use fp32, or ONNX Runtime int8"),
        ({"evaluation__metrics": "ndgc@10"}, "unknown measure 'ndgc@10'; did you mean nDCG@10"),
        ({"evaluation__gate": "nDCG >= high"}, "cannot read 'nDCG >= high'"),
        ({"evaluation__gate": "AP vs baseline >= 0"}, "set evaluation.baseline"),
        ({"evaluation__slices": "tongue"}, "will not have tongue; columns passed through are"),
        ({"evaluation__baseline": "/no/ranked", "input__label": "label"}, "/no/ranked"),
        ({"evaluation__qrels": "/no/qrels"}, "/no/qrels"),
        ({"input__doc_template": "{title"}, "stray brace"),
        ({"input__label": "retrieval_score"}, "whole number"),
    ],
)
def test_what_cannot_work_is_refused_with_2_and_writes_nothing(
    keys: dict[str, object], said: str, job: Job, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert job(out, **keys) == REFUSED
    assert said in capsys.readouterr().err
    assert not list(out.glob("*"))


def test_an_output_inside_the_input_is_refused(
    job: Job, spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.parquet"
    spark.createDataFrame(sample()).write.parquet(str(source))
    for out in (source, source / "out", tmp_path):
        assert job(out, input__path=source) == REFUSED
        assert "lie in one another" in capsys.readouterr().err


def test_a_dry_run_prices_the_job_and_writes_nothing(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert job(out, dry_run="true") == DONE
    said = capsys.readouterr().out
    assert "from store            0 pairs (0.0%)" in said
    assert "p50" in said and "would be cut at model.max_length=64" in said
    assert not out.exists()
    assert job(out) == DONE
    capsys.readouterr()
    assert job(out, dry_run="true") == DONE
    assert "from store          245 pairs (100.0%)" in capsys.readouterr().out


def test_mlflow_gets_the_run_and_an_outage_costs_no_data(
    job: Job, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a real sqlite store, and a port where nobody listens."""
    import subprocess

    from mlflow.tracking import MlflowClient

    store, out = database(tmp_path / "mlflow.db"), tmp_path / "out"
    down = "http://127.0.0.1:9"
    keys = {"mlflow__enabled": "true", "mlflow__tracking_uri": down, "input__label": "label"}
    assert job(out, **keys) == NOT_TRACKED
    assert len(read(out)) == 245
    command = capsys.readouterr().err.rpartition("log this run later with: ")[2].strip()
    environment = {"MLFLOW_TRACKING_URI": store, "PATH": str(Path(rerank.sys.executable).parent)}
    for _ in range(2):  # a replay of a replay is the same run
        ended = subprocess.run(
            command, shell=True, env=environment, capture_output=True, text=True, cwd=rerank_root()
        )
        assert ended.returncode == DONE, ended.stderr
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("spark-rerank")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs] == [record(out)["mlflow_run_id"]]
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert run.data.params["model.max_length"] == "64"
    assert run.data.metrics["counts.scored"] == 245
    assert run.data.metrics["reranked.nDCG_at_10"] == pytest.approx(
        record(out)["metrics"]["reranked"]["nDCG@10"]
    )
    assert run.data.tags["fingerprint"] == record(out)["fingerprint"]
    assert run.inputs.dataset_inputs[0].dataset.name == "sample.jsonl"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "run.json", "metrics.json", "report.html", "per_query", "plots",
    }  # fmt: skip


def rerank_root() -> Path:
    return Path(rerank.__file__).parent.parent


def test_the_udf_is_usable_by_itself(spark: SparkSession, tiny_model: Path) -> None:
    from udfs.udf import rerank_udf

    spec = ScorerSpec(str(tiny_model), "", max_length=64, window=5)
    rows = [
        (SENTENCES[i % 8], None if i == 4 else SENTENCES[i % 3] * (i % 4 + 1)) for i in range(33)
    ]
    table = spark.createDataFrame(rows, "query string, doc string").coalesce(1)
    scored = (
        table.withColumn("s", rerank_udf(spec)("query", "doc"))
        .select("query", "doc", "s.*")
        .collect()
    )
    alone = Scorer.load(tiny_model, spec, TaskSlot(1))
    for row, (query, doc) in zip(scored, rows, strict=True):
        assert (row["query"], row["doc"]) == (query, doc)
        if doc is None:
            assert (row["status"], row["logit"]) == ("null_text", None)
        else:
            assert row["status"] == "ok"
            assert row["logit"] == pytest.approx(
                float(alone.score([query], [doc]).logit[0]), abs=1e-4
            )


def test_a_table_of_arrow_strings_is_read_as_any_other(job: Job, tmp_path: Path) -> None:
    columns = {
        "query_id": ["1"], "query": [SENTENCES[0]], "doc_id": ["a"], "doc": [SENTENCES[1]],
    }  # fmt: skip
    pq.write_table(
        pa.table({k: pa.array(v, pa.large_string()) for k, v in columns.items()}),
        tmp_path / "in.parquet",
    )
    assert (
        job(tmp_path / "out", input__path=tmp_path / "in.parquet", input__doc_template=None) == DONE
    )
    assert read(tmp_path / "out")["retrieval_rank"].isna().all()


def test_a_beir_folder_with_a_trec_run(job: Job, tmp_path: Path) -> None:
    """SciFact in BEIR layout: ten queries, a thousand long pairs, cut at 128 tokens."""
    run = tmp_path / "bm25.trec"
    lines = shared_data("scifact/run.bm25.trec").read_text().splitlines()[:1000]
    run.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    assert (
        job(
            out, input__path=None, input__doc_template=None, model__max_length=128,
            input__corpus=shared_data("scifact/corpus.jsonl"),
            input__queries=shared_data("scifact/queries.jsonl"), input__run=run,
            evaluation__qrels=shared_data("scifact/qrels/test.tsv"),
        )
        == DONE
    )  # fmt: skip
    ranked = read(out)
    assert len(ranked) == 1000
    # A pair that fills the model and one that was cut differ: recount the tokens of every pair.
    corpus = pd.read_json(shared_data("scifact/corpus.jsonl"), lines=True, dtype=str)
    queries = pd.read_json(shared_data("scifact/queries.jsonl"), lines=True, dtype=str)
    texts = ranked.merge(corpus, left_on="doc_id", right_on="_id")
    texts = texts.merge(
        queries[["_id", "text"]], left_on="query_id", right_on="_id", suffixes=("", "_q")
    )
    assert len(texts) == 1000
    folder = Path(record(out)["config"]["model"]["name"])
    encoder = PairEncoder(folder, ScorerSpec(str(folder), ""))
    docs = [f"{title}\n{text}" for title, text in zip(texts["title"], texts["text"], strict=True)]
    query_counts, doc_counts = encoder.count_tokens(texts["text_q"].tolist(), docs)
    lengths = query_counts + doc_counts + encoder.special
    assert (texts["truncated"].to_numpy() == (lengths > 128)).all()
    first_stage = record(out)["metrics"]["first_stage_order"]
    assert first_stage == "retrieval_score"


def test_a_csv_output_is_what_was_ranked(job: Job, spark: SparkSession, tmp_path: Path) -> None:
    rows = [("1", "q", ' d"1 ', SENTENCES[0], "two\nlines"), ("1", "q", "d,2", SENTENCES[1], "")]
    schema = "query_id string, query string, doc_id string, doc string, note string"
    spark.createDataFrame(rows, schema).write.parquet(str(tmp_path / "in.parquet"))
    keys = {"input__path": tmp_path / "in.parquet", "input__doc_template": None}
    assert job(tmp_path / "out", output__format="csv", **keys) == DONE
    written = pd.concat(pd.read_csv(f) for f in (tmp_path / "out" / "ranked").glob("*.csv"))
    assert sorted(written["doc_id"]) == ['d"1', "d,2"]
    assert "two\nlines" in set(written["note"])


def test_two_drivers_that_scored_the_same_pairs_do_no_harm(job: Job, tmp_path: Path) -> None:
    """Equal keys collapse when read."""
    import shutil

    out = tmp_path / "out"
    assert job(out) == DONE
    first = read(out)
    attempt = next((out / "scores").glob("fingerprint=*/attempt=*"))
    shutil.copytree(attempt, attempt.with_name("attempt=ffff"))
    assert job(out) == DONE
    pd.testing.assert_frame_equal(read(out), first)


def test_the_job_without_a_model_reads_the_same_tokens(job: Job, tmp_path: Path) -> None:
    for backend in ("torch", "tokenizer"):
        assert job(tmp_path / backend, model__backend=backend) == DONE
    torch, tokens = (read(tmp_path / name) for name in ("torch", "tokenizer"))
    both = torch.merge(tokens, on=["query_id", "doc_id"], suffixes=("", "_checksum"))
    assert len(both) == 245
    for column in ("n_tokens", "truncated"):
        np.testing.assert_array_equal(both[f"{column}_checksum"], both[column])
    assert record(tmp_path / "tokenizer")["counts"] == record(tmp_path / "torch")["counts"]
    assert (both["score_checksum"] != both["score"]).all()


def test_the_job_with_onnxruntime_scores_as_with_torch(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy travels as an archive here, as it does on a cluster without a shared folder."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert job(tmp_path / "torch") == DONE
    assert job(tmp_path / "onnx", model__backend="onnxruntime", model__ship="archive") == DONE
    torch, onnx = (read(tmp_path / name) for name in ("torch", "onnx"))
    both = torch.merge(onnx, on=["query_id", "doc_id"], suffixes=("", "_onnx"))
    assert len(both) == 245
    np.testing.assert_allclose(both["score_onnx"], both["score"], rtol=1e-4, atol=1e-4)
    assert record(tmp_path / "torch")["fingerprint"] != record(tmp_path / "onnx")["fingerprint"]
