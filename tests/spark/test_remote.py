"""The job with a model behind HTTP: what it pays for, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.runtime.errors import DONE, REFUSED, UNEXPECTED
from tests.remote_server import KEY, Server, logit_of, serving
from tests.spark.conftest import Job
from udfs.scorers.dialects import DIALECTS

PAIRS, SLOTS = 245, 2
Keys = Callable[[Server], dict[str, object]]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The configuration that asks a server, in tasks of 50 pairs."""
    (tmp_path / "key").write_text(KEY)

    def make(server: Server, **more: object) -> dict[str, object]:
        return {
            "model__backend": "remote", "model__name": None, "remote__dialect": server.dialect,
            "remote__url": server.url, "remote__model": "m", "remote__commit": 50,
            "remote__key_file": tmp_path / "key", "remote__documents": 5, "remote__patience": 1.0,
            "store__path": tmp_path / "scores",
        }  # fmt: skip

    return make


def record_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "run.json").read_text())
    return content


def kept(folder: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in folder.glob("*/attempt=*/*.parquet"))


def test_a_pair_is_paid_for_once(job: Job, keys: Keys, tmp_path: Path) -> None:
    with serving("cohere") as server:
        price = {"remote__price_per_unit": 0.25}
        assert job(tmp_path / "out", **keys(server), **price) == DONE
        assert len(server.paid) == PAIRS and set(server.paid.values()) == {1}
        record = record_of(tmp_path / "out")
        assert record["counts"]["scored"] == record["counts"]["ranked"] == PAIRS
        requests = len(server.started)
        assert record["remote"] == {
            "requests": requests, "units": requests, "tokens": 0, "billed": requests,
            "cost": requests * 0.25,
        }  # fmt: skip
        assert record["model"]["name"] == "m" and record["model"]["architecture"] == "cohere"
    by_text = {round(logit_of(*pair), 4) for pair in server.paid}
    ranked = pq.read_table(tmp_path / "out" / "ranked").to_pandas()
    assert set(ranked["score"].astype(float).round(4)) <= {
        round(score + step, 4) for score in by_text for step in (-1e-4, 0, 1e-4)
    }
    squashed = 1 / (1 + np.exp(-ranked["score"].astype(float)))
    np.testing.assert_allclose(ranked["probability"], squashed, atol=1e-9)
    assert ranked["n_tokens"].isna().all() and ranked["truncated"].isna().all()
    # The same model elsewhere: the host is no part of a score.
    with serving("cohere") as other:
        assert job(tmp_path / "again", **keys(other)) == DONE
        assert not other.started
    assert record_of(tmp_path / "again")["counts"]["from_store"] == PAIRS


def test_a_task_holds_no_more_pairs_than_a_kill_may_cost(
    job: Job, keys: Keys, tmp_path: Path
) -> None:
    with serving("tei") as server:
        assert job(tmp_path / "out", **keys(server)) == DONE
    sizes = [pq.read_metadata(file).num_rows for file in (tmp_path / "scores").rglob("*.parquet")]
    assert sum(sizes) == PAIRS and max(sizes) <= 50 and len(sizes) == 5
    # Only a query that lies on the border of two tasks is cut.
    assert len(server.started) <= 28 * 2 + PAIRS / 5


@pytest.mark.parametrize("fault", ["401", pytest.param("404", marks=pytest.mark.slow)])
def test_a_refusal_ends_the_job_at_once_in_one_sentence(
    fault: str, job: Job, keys: Keys, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving("voyage", lambda number, _: fault if number > 20 else None) as server:
        assert job(tmp_path / "out", **keys(server)) == REFUSED
    paid = len(server.paid)
    assert 0 < paid < PAIRS and kept(tmp_path / "scores") == paid
    assert len(server.started) <= 20 + SLOTS * 4
    said = capfd.readouterr().err
    assert f"HTTP {fault}" in said and "Traceback" not in said and KEY not in said
    assert f"{paid} scored pairs are kept" in said
    with serving("voyage") as server:
        assert job(tmp_path / "out", **keys(server)) == DONE
    assert len(server.paid) == PAIRS - paid


def test_an_outage_ends_the_job_and_the_same_command_asks_for_the_rest(
    job: Job, keys: Keys, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    down = {"on": True}

    def fault(number: int, _docs: list[str]) -> str | None:
        return "503" if down["on"] and number > 15 else None

    with serving("jina", fault) as server:
        assert job(tmp_path / "out", **keys(server)) == UNEXPECTED
        paid = len(server.paid)
        assert 0 < paid < PAIRS and kept(tmp_path / "scores") == paid
        said = capfd.readouterr().err
        assert "remote.patience=1 s, but HTTP 503" in said
        assert f"{paid} scored pairs are kept" in said and "run the same command again" in said
        assert "Traceback" not in said
        assert not (tmp_path / "out" / "run.json").exists()
        down["on"] = False
        assert job(tmp_path / "out", **keys(server)) == DONE
    assert len(server.paid) == PAIRS and set(server.paid.values()) == {1}
    assert record_of(tmp_path / "out")["counts"]["from_store"] == paid


def test_a_document_that_the_server_refuses_is_a_reject(
    job: Job, keys: Keys, tmp_path: Path
) -> None:
    def fault(_number: int, docs: list[str]) -> str | None:
        return "400" if any("earbuds" in doc for doc in docs) else None

    with serving("cohere", fault) as server:
        options: Mapping[str, object] = {**keys(server), "input__max_reject_rate": 1.0}
        assert job(tmp_path / "out", **options) == DONE
    record = record_of(tmp_path / "out")
    assert record["counts"]["ranked"] == len(server.paid)
    assert record["reject_reasons"] == {"remote_refused": PAIRS - len(server.paid)}
    details = pq.read_table(tmp_path / "out" / "rejects").to_pandas()["detail"]
    assert set(details) == {"tokens: unknown"}


@pytest.mark.parametrize("dialect", ["cohere", "mixedbread", "tei"])
def test_a_dry_run_prices_the_job_and_asks_for_nothing(
    dialect: str, job: Job, keys: Keys, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(dialect) as server:
        options = {**keys(server), "remote__price_per_unit": 0.5}
        assert job(tmp_path / "out", **options, dry_run="true") == DONE
        assert not server.started
        said = capfd.readouterr().out
        assert job(tmp_path / "out", **options) == DONE
    assert "to score            245 pairs" in said
    found = re.search(r"to pay +([\d,]+) (.+)s, for about ([\d,.]+), estimated", said)
    assert found
    units = int(found[1].replace(",", ""))
    assert float(found[3].replace(",", "")) == pytest.approx(units * 0.5, abs=1)
    assert found[2] == DIALECTS[dialect].bills
    if dialect == "mixedbread":  # the server here counts characters
        assert 245 * 20 < units < server_characters(server)
    else:  # borders of tasks cut queries once more
        assert units <= record_of(tmp_path / "out")["remote"]["billed"] <= units + 5


def server_characters(server: Server) -> int:
    return sum(len(query) + len(doc) for query, doc in server.paid)


def test_a_run_ends_before_it_is_dearer_than_allowed(
    job: Job, keys: Keys, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving("cohere") as server:
        assert job(tmp_path / "out", **keys(server), remote__max_units=0.01) == UNEXPECTED
        assert not server.started  # not even one
        assert f"{PAIRS} of {PAIRS} pairs are left" in capfd.readouterr().err
        for _ in range(3):
            before = len(server.started)
            assert job(tmp_path / "out", **keys(server), remote__max_units=20) == UNEXPECTED
            assert 16 <= len(server.started) - before <= 20
            said = capfd.readouterr().err
            assert "remote.max_units=20 is used up" in said and "search units" in said
            left = PAIRS - len(server.paid)
            assert re.search(rf"{left} of [\d]+ pairs are left", said)
        assert job(tmp_path / "out", **keys(server), remote__max_units=500) == DONE
    assert len(server.paid) == PAIRS and set(server.paid.values()) == {1}
