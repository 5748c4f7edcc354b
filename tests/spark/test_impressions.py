"""Logs through the whole job: rows are impressions, pairs are what is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from jobs.runtime.errors import DONE, REFUSED
from tests.conftest import SENTENCES
from tests.spark.conftest import Job

DAYS, ROWS, QUERIES, DOCS = 6, 500, 50, 20
STUB = {"model__backend": "stub", "input__doc_template": None, "input__max_reject_rate": 0.1}


def read(out: Path, name: str = "ranked") -> pd.DataFrame:
    return pq.read_table(out / name).to_pandas()


def counts(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "run.json").read_text())
    return content["counts"]


def log() -> pd.DataFrame:
    """Days in which the same thousand pairs, or some of them twice, are shown."""
    generator = np.random.default_rng(3)
    days = []
    for day in range(DAYS):
        query, doc = generator.integers(QUERIES, size=ROWS), generator.integers(DOCS, size=ROWS)
        days.append(
            pd.DataFrame(
                {
                    "query_id": [f"q{q}" for q in query],
                    "query": [f"{SENTENCES[q % 8]} {q}" for q in query],
                    "doc_id": [f"d{d}" for d in doc],
                    "doc": [f"{SENTENCES[d % 8]} {d}" for d in doc],
                    "retrieval_score": 20.0 - doc, "clicks": generator.integers(3, size=ROWS),
                    "session": [f"s{day}-{row}" for row in range(ROWS)],
                    "date": f"2026-03-{day + 1:02}",
                }
            )
        )  # fmt: skip
    rows = pd.concat(days, ignore_index=True)
    rows.loc[rows.index[:7], "doc"] = None
    return rows


def test_a_log_of_many_days_comes_out_whole(job: Job, tmp_path: Path) -> None:
    rows = log()
    rows.to_parquet(tmp_path / "log", partition_cols=["date"])
    out = tmp_path / "out"
    keys = {**STUB, "input__path": tmp_path / "log", "store__path": tmp_path / "scores"}
    assert job(out, **keys) == DONE
    ranked, rejects = read(out), read(out, "rejects")
    assert len(ranked) + len(rejects) == len(rows)
    assert set(rejects["reason"]) == {"missing_doc"}
    fit = rows[rows["doc"].notna()]
    assert ranked["clicks"].sum() == fit["clicks"].sum()
    assert sorted(ranked["session"]) == sorted(fit["session"])
    assert set(ranked["date"]) == set(rows["date"])
    pairs = len(fit[["query_id", "doc_id"]].drop_duplicates())
    assert counts(out)["scored"] == counts(out)["distinct"] == pairs
    assert counts(out)["collapsed"] == 0
    for _, candidates in ranked.groupby("query_id"):
        assert sorted(candidates["rank"]) == list(range(1, len(candidates) + 1))
    assert ranked.groupby(["query_id", "doc_id"])["score"].nunique().max() == 1

    # A list is a query on a date: ranks start anew, nothing is scored again, and the order of rows
    # and files decides nothing.
    shuffled = rows.sample(frac=1, random_state=1)
    shuffled.to_json(tmp_path / "log.jsonl", orient="records", lines=True)
    tables = []
    for source, partitions in (("log", 1), ("log.jsonl", 3)):
        out = tmp_path / f"{source}-lists"
        keys |= {"input__path": tmp_path / source, "output__partitions": partitions}
        assert job(out, **keys, input__group="date") == DONE
        assert counts(out)["scored"] == 0
        tables.append(read(out).sort_values("session", ignore_index=True))
    for _, candidates in tables[0].groupby(["query_id", "date"]):
        assert sorted(candidates["rank"]) == list(range(1, len(candidates) + 1))
        assert sorted(candidates["retrieval_rank"]) == list(range(1, len(candidates) + 1))
    pd.testing.assert_frame_equal(tables[0], tables[1][tables[0].columns], check_like=True)


def test_one_rendering_has_one_fingerprint(job: Job, tmp_path: Path) -> None:
    """Long, nested and normalised tables of the same texts: the second and third score nothing."""
    rows = [
        {"query_id": "1", "query": "fleas", "doc_id": str(at), "title": f"T{at}", "text": text}
        for at, text in enumerate(SENTENCES)
    ]

    def lines(name: str, content: list[dict[str, Any]]) -> Path:
        (tmp_path / name).write_text("\n".join(map(json.dumps, content)), "utf-8")
        return tmp_path / name

    inner = [{key: row[key] for key in ("doc_id", "title", "text")} for row in rows]
    docs = [{"_id": row["doc_id"], "title": row["title"], "text": row["text"]} for row in rows]
    joined = [{**row, "doc": f"{row['title']}\n{row['text']}"} for row in rows]
    (tmp_path / "run.trec").write_text("".join(f"1 Q0 {at} {at + 1} 0 x\n" for at in range(8)))
    template = {"input__doc_template": "{title}\\n{text}"}
    layouts: list[dict[str, object]] = [
        {"input__path": lines("long.jsonl", rows), **template},
        {"input__path": lines("joined.jsonl", joined)},
        {
            "input__path": lines("n.jsonl", [{"query_id": "1", "query": "fleas", "hits": inner}]),
            "input__candidates": "hits", **template,
        },
        {
            "input__path": None, "input__run": tmp_path / "run.trec",
            "input__queries": lines("queries.jsonl", [{"_id": "1", "text": "fleas"}]),
            "input__corpus": lines("corpus.jsonl", docs),
        },
    ]  # fmt: skip
    for at, layout in enumerate(layouts):
        out = tmp_path / f"out-{at}"
        assert job(out, **{**STUB, "store__path": tmp_path / "scores", **layout}) == DONE
        assert counts(out)["scored"] == (8 if at == 0 else 0), layout


def test_an_input_that_cannot_be_meant_is_refused_before_anything_is_written(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"query_id": "1", "query": "q", "doc_id": "a", "doc": "x", "label": "good"}
    pd.DataFrame([row]).to_parquet(tmp_path / "words.parquet")
    pd.DataFrame([row]).head(0).to_parquet(tmp_path / "empty.parquet")
    out = tmp_path / "out"
    for name, said in (("words", "column label has no numbers"), ("empty", "has no rows")):
        keys = {**STUB, "input__path": tmp_path / f"{name}.parquet", "input__label": "label"}
        assert job(out, **keys) == REFUSED
        assert said in capsys.readouterr().err
        assert not list(out.glob("*"))


def test_columns_named_like_those_of_measuring_pass_through(job: Job, tmp_path: Path) -> None:
    rows = log()[7:200].drop_duplicates(["query_id", "doc_id"])
    rows = rows.assign(label=1, relevance="high", before=7, after="x").drop(columns="session")
    rows.to_parquet(tmp_path / "log.parquet")
    out = tmp_path / "out"
    given = {**STUB, "input__path": tmp_path / "log.parquet", "input__label": "label"}
    assert job(out, **given, input__group="date", evaluation__slices="date") == DONE
    ranked = read(out)
    assert {*ranked["relevance"]} == {"high"} and {*ranked["before"]} == {7}
    assert {*ranked["after"]} == {"x"}
    measured = json.loads((out / "metrics.json").read_text())
    assert measured["queries_judged"] > 10 and len(measured["slices"][0]["rows"]) >= 1
