"""One input with everything in it that an input should not have."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults import oracle
from tests.faults.conftest import Job
from tests.faults.daemon import Faults

pytestmark = pytest.mark.slow

Row = tuple[str | None, bytes | None, str | None, bytes | None]
REJECTED: list[tuple[Row, str]] = [
    (("1", None, "null", b"x"), "missing_query"),
    (("1", b"", "empty", b"x"), "missing_query"),
    (("1", b"q", "empty", b""), "missing_doc"),
    (("1", b"q", "blanks", b" \t\n"), "missing_doc"),
    (("1", b"q", "zero-width", "\u200b\u200d\ufeff".encode()), "missing_doc"),
    (("1", b"q", "bytes", b"\xff\xfe x"), "invalid_utf8"),
    (("1", b"\xed\xa0\x80 x", "surrogate", b"x"), "invalid_utf8"),
    ((None, b"q", "no query id", b"x"), "missing_query_id"),
    (("1", b"q", None, b"x"), "missing_doc_id"),
    (("1", b"q", "twice", b"one"), "conflicting_duplicate"),
    (("1", b"q", "twice", b"two"), "conflicting_duplicate"),
]
SCORED: list[Row] = [
    ("1", b"q", "nul", b"a\x00b \x07"),
    ("1", b"q", "right-to-left", "שלום \u202e עולם".encode()),
    ("1", b"q", "megabytes", b"flea " * 1_000_000),
    ("2", b"how long " * 1000, "2,000 tokens of query", b"a flea"),
    ("3", b"alone", "one row", b"one candidate"),
]  # fmt: skip
REPEATED: Row = ("4", b"again", "and again", b"a thousand times")


def write(file: Path, candidates: int, seed: int) -> int:
    rows = [row for row, _ in REJECTED] + SCORED + [REPEATED] * 1000
    rows += [("5", b"many", f"c{i:06d}", f"candidate {i}".encode()) for i in range(candidates)]
    random.Random(seed).shuffle(rows)
    kinds = {
        "query_id": pa.string(),
        "query": pa.binary(),
        "doc_id": pa.string(),
        "doc": pa.binary(),
    }
    columns = zip(kinds.items(), zip(*rows, strict=True), strict=True)
    table = pa.table({name: pa.array(values, kind) for (name, kind), values in columns})
    pq.write_table(table, file, row_group_size=max(1, len(rows) // 4))
    return len(rows)


@pytest.mark.parametrize(("backend", "candidates"), [("torch", 50), ("stub", 100_000)])
def test_every_row_is_scored_or_has_its_reason_and_none_costs_another(
    backend: str, candidates: int, job: Job, tmp_path: Path
) -> None:
    """Twice, with the rows in another order and in other tasks: the result is the same."""
    tally = tmp_path / "tally"
    for seed, name in enumerate(("first", "out")):
        source = tmp_path / f"{name}.parquet"
        rows = write(source, candidates, seed)
        job.finish(
            tmp_path / name, Faults(str(tally) if seed else ""), input__path=source,
            input__doc_template=None, model__backend=backend, batching__window=1024,
            batching__partitions=3 + 4 * seed,
            spark__settings={"spark.sql.execution.arrow.maxRecordsPerBatch": "256"},
        )  # fmt: skip
    out = tmp_path / "out"
    cost = oracle.check(out, tmp_path / "first", rows=rows, tally=tally)
    assert (cost.scored_again, cost.stored_again) == (0, 0)
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert counts["collapsed"] == 999
    assert counts["ranked"] == counts["distinct"] == len(SCORED) + 1 + candidates
    rejects = oracle.table(out, "rejects")
    found = sorted(zip(rejects["doc_id"].astype(str), rejects["reason"], strict=True))
    assert found == sorted((str(row[2]), reason) for row, reason in REJECTED)
    ranked = oracle.table(out, "ranked")
    assert sorted(ranked[ranked["query_id"] == "5"]["rank"]) == list(range(1, candidates + 1))
