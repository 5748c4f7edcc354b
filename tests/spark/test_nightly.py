"""A log that grows day by day: what is scored, what is replaced, and what stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from jobs.runtime.errors import DONE, REFUSED
from tests.conftest import SENTENCES
from tests.spark.conftest import Job

DAYS, ROWS, QUERIES, DOCS = 6, 300, 25, 40
KEYS = ["date", "query_id", "doc_id"]


def day(number: int) -> str:
    return f"2026-01-{30 + number:02}" if number < 2 else f"2026-02-{number - 1:02}"


def write_log(folder: Path) -> pd.DataFrame:
    """Six days, 60% of the pairs seen before; texts in tables of their own."""
    generator = np.random.default_rng(5)
    seen: list[tuple[int, int]] = []
    days = []
    every = [(q, d) for q in range(QUERIES) for d in range(DOCS)]
    for number in range(DAYS):
        unseen = [every[i] for i in generator.permutation(len(every)) if every[i] not in set(seen)]
        fresh = ROWS if not seen else ROWS * 2 // 5
        again = [seen[i] for i in generator.permutation(len(seen))[: ROWS - fresh]]
        pairs = sorted([*unseen[:fresh], *again])
        seen += unseen[:fresh]
        days.append(
            pd.DataFrame(
                {
                    "query_id": [f"q{q}" for q, _ in pairs],
                    "doc_id": [f"d{d}" for _, d in pairs],
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
            "query_id": [f"q{q}" for q in range(QUERIES)],
            "query": [f"{SENTENCES[q % 8]} {q}" for q in range(QUERIES)],
        }
    ).to_parquet(folder / "queries.parquet")
    pd.DataFrame(
        {
            "doc_id": [f"d{d}" for d in range(DOCS)],
            "doc": [f"{d} {SENTENCES[d % 8]} {SENTENCES[d % 5]}" for d in range(DOCS)],
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
        "store__path": folder / "scores", "label__on": "quantile", "label__thresholds": 0.9,
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
    assert sum(new.values()) < len(rows) / 2 + ROWS
    for number in range(DAYS):
        before = files(out, "ranked", "rejects")
        assert job(out, **keys(tmp_path, **of(number))) == DONE
        counts = record(out)["counts"]
        assert counts["input"] == counts["ranked"] == ROWS
        assert counts["scored"] == new[day(number)]
        assert counts["from_store"] == ROWS - new[day(number)]
        assert before.items() <= files(out, "ranked", "rejects").items()
    ranked, drift = table(out), table(out, "drift")
    assert len(ranked) == len(rows)

    # A day that is run again scores nothing and says the same.
    others = {name: content for name, content in files(out, "ranked").items()
              if day(3) not in name}  # fmt: skip
    assert job(out, **keys(tmp_path, **of(3))) == DONE
    assert record(out)["counts"]["scored"] == 0
    pd.testing.assert_frame_equal(table(out), ranked)
    assert others.items() <= files(out, "ranked").items()
    again = table(out, "drift")
    assert again.pop("from_store").tolist()[3] == 1.0
    pd.testing.assert_frame_equal(again, drift.drop(columns="from_store"))

    assert job(whole, **keys(tmp_path, store__path=tmp_path / "other")) == DONE
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


def test_days_of_which_nothing_is_left_go_and_others_stay(job: Job, tmp_path: Path) -> None:
    write_log(tmp_path)
    out = tmp_path / "out"
    assert job(out, **keys(tmp_path)) == DONE
    assert set(table(out)["date"]) == {day(n) for n in range(DAYS)}
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
