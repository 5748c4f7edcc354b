"""A log that grows day by day: what is scored, what is replaced, and what stays as it was."""

from __future__ import annotations

import json
import os
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.config import InputConfig
from jobs.evaluation.ranked import read_ranked
from jobs.input.readers import read_source
from jobs.input.selection import select_rows
from jobs.runtime.errors import DONE, REFUSED, RefusedError
from tests.conftest import SENTENCES, Database
from tests.faults.conftest import KILLED
from tests.faults.conftest import Job as Killed
from tests.faults.launch import Driver
from tests.faults.oracle import stored
from tests.spark.conftest import Job

DAYS, ROWS, QUERIES, DOCS = 3, 150, 15, 40
SIZES = {"DAYS": "6", "ROWS": "500"}  # of the environment
KEYS = ["date", "query_id", "doc_id"]


def day(number: int) -> str:
    return str(date(2026, 1, 30) + timedelta(days=number))


def write_log(
    folder: Path, count: int = DAYS, rows_a_day: int = ROWS, queries: int = QUERIES,
    docs: int = DOCS,
) -> pd.DataFrame:  # fmt: skip
    """Write some days, 60% of whose pairs were seen before; texts are in tables of their own."""
    generator = np.random.default_rng(5)
    order, seen, days = generator.permutation(queries * docs), 0, []
    for number in range(count):
        fresh = rows_a_day * 2 // 5 if seen else rows_a_day
        again = generator.permutation(seen)[: rows_a_day - fresh]
        pairs = np.sort(order[[*range(seen, seen + fresh), *again]])
        seen += fresh
        days.append(
            pd.DataFrame(
                {
                    "query_id": [f"q{pair // docs}" for pair in pairs],
                    "doc_id": [f"d{pair % docs}" for pair in pairs],
                    "retrieval_score": generator.random(len(pairs)),
                    "clicks": generator.integers(3, size=len(pairs)),
                    "date": day(number),
                }
            )
        )
    rows = pd.concat(days, ignore_index=True)
    rows.to_parquet(folder / "log", partition_cols=["date"])
    pd.DataFrame(
        {
            "query_id": [f"q{q}" for q in range(queries)],
            "query": [f"{SENTENCES[q % 8]} {q}" for q in range(queries)],
        }
    ).to_parquet(folder / "queries.parquet")
    pd.DataFrame(
        {
            "doc_id": [f"d{d}" for d in range(docs)],
            "doc": [f"{d} {SENTENCES[d % 8]} {SENTENCES[d % 5]}" for d in range(docs)],
        }
    ).to_parquet(folder / "corpus.parquet")
    return rows


def unseen(rows: pd.DataFrame) -> dict[str, int]:
    """Pairs of each day that no day before it has."""
    first = rows.groupby(["query_id", "doc_id"])["date"].min()
    return {str(date): int(count) for date, count in first.value_counts().items()}


def keys(folder: Path, **more: object) -> dict[str, object]:
    return {
        "input__path": folder / "log", "input__corpus": folder / "corpus.parquet",
        "input__queries": folder / "queries.parquet", "input__doc_template": None,
        "input__date": "date", "input__group": "date", "output__partition_by": "date",
        "store__path": folder / "scores", "label__scale": "quantile", "label__thresholds": 0.9,
        **more,
    }  # fmt: skip


def of(number: int, until: int | None = None) -> dict[str, object]:
    return {"input__since": day(number), "input__until": day(number if until is None else until)}


def record(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "run.json").read_text())
    return content


def table(out: Path, name: str = "ranked") -> pd.DataFrame:
    rows = pq.read_table(out / name).to_pandas()
    rows = rows.astype({"date": str}) if "date" in rows else rows
    order = [key for key in (*KEYS, "day") if key in rows]
    return rows.sort_values(order, ignore_index=True)


def files(out: Path, *names: str) -> dict[str, bytes]:
    found = [file for name in names for file in (out / name).rglob("*.parquet")]
    return {str(file.relative_to(out)): file.read_bytes() for file in found}


def test_day_by_day_is_one_run_over_all(job: Job, tmp_path: Path) -> None:
    rows, out, whole = write_log(tmp_path), tmp_path / "out", tmp_path / "whole"
    new = unseen(rows)
    assert sum(new.values()) == ROWS + (DAYS - 1) * ROWS * 2 // 5
    for number in range(DAYS):
        before = files(out, "ranked", "rejects")
        assert job(out, **keys(tmp_path, model__backend="stub", **of(number))) == DONE
        counts = record(out)["counts"]
        assert counts["input"] == counts["ranked"] == ROWS
        assert counts["scored"] == new[day(number)]
        assert counts["from_store"] == ROWS - new[day(number)]
        assert before.items() <= files(out, "ranked", "rejects").items()
    ranked, drift = table(out), table(out, "drift")
    assert len(ranked) == len(rows)

    # A day that is run again scores nothing and says the same.
    others = {name: content for name, content in files(out, "ranked").items()
              if day(1) not in name}  # fmt: skip
    assert job(out, **keys(tmp_path, model__backend="stub", **of(1))) == DONE
    assert record(out)["counts"]["scored"] == 0
    pd.testing.assert_frame_equal(table(out), ranked)
    assert others.items() <= files(out, "ranked").items()
    again = table(out, "drift")
    assert again.pop("from_store").tolist()[1] == 1.0
    pd.testing.assert_frame_equal(again, drift.drop(columns="from_store"))

    at = {"store__path": tmp_path / "other", "model__backend": "stub"}
    assert job(whole, **keys(tmp_path, **at)) == DONE
    assert record(whole)["counts"]["scored"] == sum(new.values())
    at_once = table(whole)
    columns = [*KEYS, "rank", "clicks", "retrieval_rank", "n_tokens"]
    pd.testing.assert_frame_equal(at_once[columns], ranked[columns])
    np.testing.assert_allclose(at_once["score"], ranked["score"], atol=1e-4, rtol=0)
    assert (at_once["label"] == ranked["label"]).mean() > 0.99  # a score at the edge may differ

    # Drift, against pandas.
    assert drift["day"].tolist() == [day(n) for n in range(DAYS)]
    assert drift["previous"].tolist() == [None, *(day(n) for n in range(DAYS - 1))]
    for (_, here), number in zip(drift.iterrows(), range(DAYS), strict=True):
        scores = ranked["score"][ranked["date"] == day(number)].astype(float)
        assert here["score_p50"] == pytest.approx(scores.median(), abs=2e-3)
        grades = ranked["label"][ranked["date"] == day(number)]
        np.testing.assert_allclose(
            here["label_shares"], grades.value_counts(normalize=True)[[0, 1]]
        )
        assert here["from_store"] == pytest.approx(1 - new[day(number)] / ROWS, abs=1e-5)
        assert grades.mean() == pytest.approx(0.1, abs=0.01)
        if number:
            tops = [
                ranked[(ranked["date"] == day(n)) & (ranked["rank"] == 1)].set_index("query_id")
                for n in (number - 1, number)
            ]
            both = tops[0].join(tops[1], how="inner", rsuffix="_after")
            changed = (both["doc_id"] != both["doc_id_after"]).mean()
            assert here["top1_change_rate"] == pytest.approx(changed, abs=1e-5)
            assert here["label_shift"] < 0.02
    assert 0 < drift["top1_change_rate"].iloc[1:].mean() < 1
    pd.testing.assert_frame_equal(
        table(whole, "drift").drop(columns="from_store"),
        drift.drop(columns="from_store"),
        atol=2e-3,
    )


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_month(job: Job, tiny_bert: Path, tmp_path: Path) -> None:
    """Night by night, one of them killed and repeated: as one run over all, and nothing twice.

    NIGHTS_DAYS=30 NIGHTS_ROWS=20000 asks for a month.
    """
    count, size = (int(os.environ.get(f"NIGHTS_{name}", n)) for name, n in SIZES.items())
    rows = write_log(tmp_path, count, size, max(QUERIES, size // 20), 1000)
    out, whole, new, killed = tmp_path / "out", tmp_path / "whole", unseen(rows), min(11, count - 2)
    given = keys(tmp_path, model__backend="stub")
    for number in range(count):
        before, lost = files(out, "ranked", "rejects"), 0
        if number == killed:
            lists = {name: [given[name]] for name in
                     ("input__group", "output__partition_by", "label__thresholds")}  # fmt: skip
            process, scored = Killed(tmp_path, {"model.name": tiny_bert}), len(stored(tmp_path))
            keys_of_night = {**given, **lists, **of(number), "input__doc_template": None}
            assert process.run(out, None, Driver("moved:1"), **keys_of_night).code == KILLED
            lost = len(stored(tmp_path)) - scored
            assert lost == new[day(number)]  # all of them were scored, and are kept
        assert job(out, **{**given, **of(number)}) == DONE
        counts = record(out)["counts"]
        assert counts["input"] == counts["ranked"] == size
        assert counts["scored"] == new[day(number)] - lost
        assert before.items() <= files(out, "ranked", "rejects").items()
    total = size + (count - 1) * (size * 2 // 5)
    assert len(stored(tmp_path)) == sum(new.values()) == total

    ranked, others = table(out), files(out, "ranked", "rejects")
    others = {name: content for name, content in others.items() if day(1) not in name}
    assert job(out, **{**given, **of(1)}) == DONE  # a night twice
    assert record(out)["counts"]["scored"] == 0
    assert others.items() <= files(out, "ranked", "rejects").items()
    pd.testing.assert_frame_equal(table(out), ranked)
    assert job(whole, **{**given, "store__path": tmp_path / "other"}) == DONE
    assert record(whole)["counts"]["scored"] == total
    pd.testing.assert_frame_equal(table(whole), ranked)


@pytest.mark.slow
def test_days_of_which_nothing_is_left_go_and_others_stay(job: Job, tmp_path: Path) -> None:
    write_log(tmp_path, 6)
    out = tmp_path / "out"
    assert job(out, **keys(tmp_path)) == DONE
    assert set(table(out)["date"]) == {day(n) for n in range(6)}
    before = files(out, "ranked")

    shutil.rmtree(tmp_path / "log" / f"date={day(2)}")
    # One of the two days that are asked for is gone: it goes, and the drift of the next is renewed.
    assert job(out, **keys(tmp_path, **of(1, 2))) == DONE
    assert set(table(out)["date"]) == {day(n) for n in (0, 1, 3, 4, 5)}
    kept = {name: content for name, content in before.items()
            if any(day(n) in name for n in (0, 3, 4, 5))}  # fmt: skip
    assert kept.items() <= files(out, "ranked").items()
    drift = table(out, "drift").set_index("day")
    assert day(2) not in drift.index and drift["previous"][day(3)] == day(1)
    # The only day that is asked for is gone.
    shutil.rmtree(tmp_path / "log" / f"date={day(4)}")
    assert job(out, **keys(tmp_path, **of(4))) == REFUSED
    assert set(table(out)["date"]) == {day(n) for n in (0, 1, 3, 4, 5)}
    assert job(out, **keys(tmp_path, input__allow_empty="true", **of(4))) == DONE
    assert set(table(out)["date"]) == {day(n) for n in (0, 1, 3, 5)}
    # A condition that leaves nothing of a day.
    assert job(out, **keys(tmp_path, input__allow_empty="true", input__where="clicks > 9",
                           **of(5))) == DONE  # fmt: skip
    assert set(table(out)["date"]) == {day(n) for n in (0, 1, 3)}
    assert set(table(out, "drift")["day"]) == {day(n) for n in (0, 1, 3)}
    # A day whose rows were all cut.
    assert job(out, **keys(tmp_path, ranking__min_score=1e6, **of(1))) == DONE
    assert set(table(out)["date"]) == {day(n) for n in (0, 3)}


@pytest.mark.parametrize("kind", ["folders", "date", "timestamp", "json", "json lines"])
def test_days_and_conditions(kind: str, spark: SparkSession, tmp_path: Path) -> None:
    rows = write_log(tmp_path)
    path = tmp_path / "log"
    if kind in ("date", "timestamp"):
        path = tmp_path / "typed"
        table = spark.createDataFrame(rows).selectExpr(
            "query_id", "doc_id", "clicks",
            "CAST(date AS DATE) date" if kind == "date"
            else "CAST(date AS TIMESTAMP) + INTERVAL '23:59' HOUR TO MINUTE date",
        )  # fmt: skip
        table.write.parquet(str(path))
    elif kind == "json":
        path = tmp_path / "json"
        spark.createDataFrame(rows).write.partitionBy("date").json(str(path))
    elif kind == "json lines":
        path = tmp_path / "log.jsonl"
        path.write_text(rows.to_json(orient="records", lines=True) + '{"query_id": \n')

    def select(**keys: object) -> pd.DataFrame:
        config = InputConfig.model_validate({"path": str(path), "date": "date", **keys})
        found = read_source(spark, path=str(path), source_format="json" if "js" in kind else "auto")
        return select_rows(found, config).toPandas()

    first, last = day(1), day(2)
    wanted = rows[(rows["date"] >= first) & (rows["date"] <= last)]
    # A record that cannot be read is of no day; it is kept, to be rejected.
    broken = int(kind == "json lines")
    assert len(select()) == len(rows) + broken
    assert len(select(since=first, until=last)) == len(wanted) + broken
    assert len(select(since=last)) == (rows["date"] >= last).sum() + broken
    assert len(select(since=last, until="9999-12-31")) == (rows["date"] >= last).sum() + broken
    assert len(select(until=first)) == (rows["date"] <= first).sum() + broken
    found = select(since=first, until=last, where="clicks > 1 AND doc_id != 'd1'")
    assert len(found) == ((wanted["clicks"] > 1) & (wanted["doc_id"] != "d1")).sum() + broken
    assert len(select(where="clicks > 1 OR true")) == len(rows) + broken


def test_only_the_folders_of_the_days_are_read(spark: SparkSession, tmp_path: Path) -> None:
    write_log(tmp_path, 5)
    for number in (0, 4):  # whoever opens these fails
        for file in (tmp_path / "log" / f"date={day(number)}").glob("*.parquet"):
            file.write_bytes(b"no parquet")
    config = InputConfig.model_validate(
        {"path": "log", "date": "date", "since": day(1), "until": day(3)}
    )
    rows = read_source(spark, path=str(tmp_path / "log" / f"date={day(1)}")).drop("_rerank_error")
    schema = rows.schema.add("date", "string")
    source = spark.read.schema(schema).parquet(str(tmp_path / "log"))
    found = select_rows(source.selectExpr("*", "CAST(NULL AS STRING) _rerank_error"), config)
    assert found.toPandas()["clicks"].count() == 3 * ROWS
    config = InputConfig.model_validate({"path": "log", "where": f"date = '{day(2)}'"})
    found = select_rows(source.selectExpr("*", "CAST(NULL AS STRING) _rerank_error"), config)
    assert found.toPandas()["clicks"].count() == ROWS


def test_what_is_no_condition_or_no_day_is_refused_in_one_sentence(
    spark: SparkSession, tmp_path: Path
) -> None:
    write_log(tmp_path)
    rows = read_source(spark, path=str(tmp_path / "log")).selectExpr("*", "'31.1.2026' german")

    def refused(**keys: object) -> str:
        with pytest.raises(RefusedError) as error:
            select_rows(rows, InputConfig.model_validate({"path": "log", **keys}))
        assert len(error.value.messages) == 1 and "\n" not in str(error.value)
        return str(error.value)

    for where in ("clicks >", "click > 1", "clicks", "count(*) > 1", "true) OR (true", "f(clicks)"):
        said = refused(where=where)
        assert said.startswith(f"input.where={where} is no condition on the input (")
        assert said.endswith(
            "its columns are query_id, doc_id, retrieval_score, clicks, date, german"
        )
    assert "leave out rand()" in refused(where="rand() < 0.5")
    assert "the input has no column day; it has: query_id" in refused(date="day")
    assert "input.date=clicks is bigint; it has to be" in refused(date="clicks", since=day(1))
    assert "input.date=german holds other text; it has" in refused(date="german", since=day(1))


def test_settings_that_cannot_go_together(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_log(tmp_path)
    rows["at"] = pd.to_datetime(rows["date"]).astype("datetime64[us]")
    rows["tags"] = [["a"]] * len(rows)
    rows.to_parquet(tmp_path / "typed.parquet")
    out = tmp_path / "out"

    def refused(**more: object) -> str:
        assert job(out, **keys(tmp_path, **more)) == REFUSED
        assert not (out / "ranked").exists()
        return capsys.readouterr().err

    assert "a list must be of one day; add input.group=date" in refused(input__group=None)
    assert "need input.date" in refused(input__date=None, input__since=day(1))
    assert f"input.since={day(2)} is after input.until={day(1)}" in refused(**of(2, 1))
    assert "input.since='soon': input should be a valid date" in refused(input__since="soon")
    assert "label.column=clicks is a column of the ranked" in refused(label__column="clicks")
    assert "label.scale=platt is fitted to judgements" in refused(label__scale="platt")
    typed = {"input__path": tmp_path / "typed.parquet"}
    moments = dict.fromkeys(("input__date", "input__group", "output__partition_by"), "at")
    assert "partition_by=at is timestamp" in refused(**typed, **moments)
    both = {"config": tmp_path / "both.yaml"}
    both["config"].write_text("output: {partition_by: [date, tags]}\n")
    assert "partition_by=tags is array<string>; name a plain" in refused(
        **typed, **both, output__partition_by=None
    )


@pytest.mark.slow
def test_partitions_of_a_day_that_a_run_does_not_ask_for_stay(job: Job, tmp_path: Path) -> None:
    """Tenants whose names look like numbers, each relabeled by itself."""
    rows = [
        {
            "query_id": f"q{query}", "query": SENTENCES[query], "doc_id": f"d{doc}",
            "text": SENTENCES[doc], "date": day(number), "tenant": tenant,
            "list": f"{query} {number} {tenant}",
        }
        for number in range(3) for tenant in ("007", "08") for query in range(3)
        for doc in range(4)
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(tmp_path / "log.parquet")
    out, both = tmp_path / "out", tmp_path / "both.yaml"
    both.write_text("input: {group: [date, tenant]}\noutput: {partition_by: [date, tenant]}\n")
    given: dict[str, object] = {
        "input__path": tmp_path / "log.parquet", "input__doc_template": "{text}",
        "input__date": "date", "store__path": tmp_path / "scores", "config": both,
    }  # fmt: skip
    assert job(out, **given, **of(0, 1)) == DONE
    before = files(out, "ranked")
    assert len(before) == 4
    assert job(out, **given, **of(1), input__where="tenant = '007'") == DONE
    kept = {name: content for name, content in before.items()
            if f"date={day(1)}/tenant=007" not in name}  # fmt: skip
    assert len(kept) == 3 and kept.items() <= files(out, "ranked").items()
    # The day before is read from what is published.
    assert job(out, **given, **of(2)) == DONE
    drift = table(out, "drift").set_index("day")
    assert drift["top1_change_rate"].tolist()[1:] == [0.0, 0.0]
    # A date that documents are made of tells days apart all the same.
    other = {"input__doc_template": "{date}: {text}", "config": None,
             "input__query_id": "list", "label__scale": "quantile",
             "label__thresholds": 0.5}  # fmt: skip
    assert job(tmp_path / "other", **{**given, **other}) == DONE
    assert set(record(tmp_path / "other")["labels"]["cuts"]) == {day(n) for n in range(3)}


@pytest.mark.slow
def test_other_days_replace_nothing_where_results_are_not_split(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path)
    out = tmp_path / "out"
    plain = {"output__partition_by": None, "label__thresholds": None}
    assert job(out, **keys(tmp_path, **plain, **of(1))) == DONE
    capsys.readouterr()
    assert job(out, **keys(tmp_path, **plain, **of(2))) == REFUSED
    assert f"holds results of {tmp_path}/log ({day(1)} to {day(1)}); set" in capsys.readouterr().err


@pytest.mark.slow
def test_grades_by_judgements(
    job: Job, spark: SparkSession, tmp_path: Path, database: Database,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Judgements that a random model cannot follow: the run says so, and logs drift by day."""
    rows, out = write_log(tmp_path), tmp_path / "out"
    generator = np.random.default_rng(2)
    qrels = rows[["query_id", "doc_id"]].drop_duplicates()
    qrels["relevance"] = generator.integers(2, size=len(qrels))
    qrels.to_csv(tmp_path / "qrels.csv", index=False)
    uri = database(tmp_path / "mlflow.db")
    more = {"evaluation__qrels": tmp_path / "qrels.csv", "label__scale": "isotonic",
            "label__thresholds": 0.5, "mlflow__enabled": "true",
            "mlflow__tracking_uri": uri}  # fmt: skip
    assert job(out, **keys(tmp_path, **more, **of(0, 1))) == DONE
    found = record(out)["labels"]
    (row,) = found["separation"]
    assert 0.35 < row["in_order"] < 0.65 and sum(row["documents"]) == ROWS + ROWS * 2 // 5
    said = "warning: Scores do not clearly separate grade 1 from grade 0: of two judged documents"
    assert said in capsys.readouterr().out
    (cut,) = found["cuts"]
    ranked = table(out)
    assert ((ranked["score"].astype(float) >= cut) == (ranked["label"] == 1)).all()
    shares = ranked["label"].value_counts(normalize=True).to_dict()
    assert found["shares"] == pytest.approx({str(k): v for k, v in shares.items()}, abs=1e-6)
    # Such labels are no judgements of the order that they come from.
    assert "label" not in read_ranked(spark, "ranked", str(out / "ranked")).candidates.columns

    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    run = record(out)["mlflow_run_id"]
    history = client.get_metric_history(run, "drift.top1_change_rate")
    assert [point.step for point in history] == [int(day(1).replace("-", ""))]
    steps = [point.step for point in client.get_metric_history(run, "drift.score_p50")]
    assert steps == [int(day(n).replace("-", "")) for n in (0, 1)]
    assert "drift" in {file.path for file in client.list_artifacts(run)}
    logged = client.get_run(run).data.metrics
    assert {f"labels.shares.{k}": v for k, v in found["shares"].items()}.items() <= logged.items()
