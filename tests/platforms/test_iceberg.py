"""The ranked table in a catalog of Iceberg, night by night, on Spark 3.5.

PyPI has the jar without the Jackson classes that Iceberg shades; pyspark's own are put in their
place, for this test only.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyspark
import pytest
from pyspark.sql import SparkSession

from jobs.input.readers import read_source
from jobs.runtime.errors import DONE, REFUSED
from tests.conftest import ROOT

iceberg = pytest.importorskip(
    "snowpark_connect_deps_iceberg", reason="a package with Iceberg's jar"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not pyspark.__version__.startswith("3.5"), reason="the jar is for Spark 3.5"
    ),
]

JARS = Path(pyspark.__file__).parent / "jars"
TABLE = "lake.search.ranked"
# Bytes of a class file's constants by kind, but for text.
_SIZES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4,
          19: 2, 20: 2}  # fmt: skip


def moved(content: bytes) -> bytes:
    """A class file with Jackson's names where Iceberg looks for them."""
    count, at, index, parts = struct.unpack(">H", content[8:10])[0], 10, 1, [content[:10]]
    while index < count:
        kind = content[at]
        if kind == 1:
            size = struct.unpack(">H", content[at + 1 : at + 3])[0]
            text = content[at + 3 : at + 3 + size]
            for mark in (b"/", b"."):
                old = mark.join([b"com", b"fasterxml", b"jackson", b""])
                new = mark.join([b"org", b"apache", b"iceberg", b"shaded", old])
                text = text.replace(old, new)
            parts.append(b"\x01" + struct.pack(">H", len(text)) + text)
            at += 3 + size
        else:
            parts.append(content[at : at + 1 + _SIZES[kind]])
            at += 1 + _SIZES[kind]
            index += kind in (5, 6)
        index += 1
    return b"".join([*parts, content[at:]])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Spark settings of a catalog in a folder."""
    folder = tmp_path_factory.mktemp("lake")
    shaded = folder / "jackson.jar"
    with zipfile.ZipFile(shaded, "w") as target:
        for source in JARS.glob("jackson-*-2.15.2.jar"):
            with zipfile.ZipFile(source) as jar:
                for name in jar.namelist():
                    if name.startswith("com/fasterxml/jackson") and name.endswith(".class"):
                        path = f"org/apache/iceberg/shaded/{name}"
                        target.writestr(path, moved(jar.read(name)))
    (runtime,) = (Path(iceberg.__file__).parent / "jars").glob("*spark-runtime-3.5_2.12-*.jar")
    return {
        "spark.jars": f"{runtime},{shaded}",
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "hadoop",
        "spark.sql.catalog.lake.warehouse": str(folder / "warehouse"),
        "spark.ui.enabled": "false",
    }


@pytest.fixture
def spark(settings: dict[str, str]) -> Iterator[SparkSession]:
    builder = SparkSession.builder.master("local[2]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


def command(settings: dict[str, str], source: object, out: Path, **keys: object) -> list[str]:
    given: dict[str, object] = {
        "input.path": source, "output.path": out, "output.table": TABLE, "model.backend": "stub",
        "model.name": "embedded", "mlflow.enabled": "false", "spark.master": "local[2]",
        "store.path": out.parent / "scores", "output.table_mode": "partitions",
        "output.partition_by": "date", "input.allow_empty": "true", **keys,
    }  # fmt: skip
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    words += [w for key, value in settings.items() for w in ("--spark.settings", f"{key}={value}")]
    return [sys.executable, "-m", "jobs.rerank", *words]


def night(folder: Path, date: str, clicks: int, rows: int = 40) -> Path:
    """A night's log."""
    numbers = range(rows)
    frame = pd.DataFrame(
        {"query_id": [f"q{n % 4}" for n in numbers], "query": [f"query {n % 4}" for n in numbers],
         "doc_id": [f"d{n}" for n in numbers], "doc": [f"text {date} {n}" for n in numbers],
         "clicks": clicks, "date": date}
    )  # fmt: skip
    path = folder / f"{date}-{clicks}.parquet"
    frame.astype({"clicks": "int64"}).to_parquet(path)
    return path


def run(words: list[str], code: int = DONE) -> str:
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == code, ended.stderr[-3000:]
    return ended.stdout + ended.stderr


def killed_before_the_commit(words: list[str], out: Path) -> None:
    """Kill a run when its scores are there and nothing is published: driver, JVM and workers."""
    code = (
        "import sys, os, signal, jobs.rerank as job\n"
        "job.write_table = lambda *_: os.killpg(0, signal.SIGKILL)\n"
        "job.main(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *words[3:]], cwd=ROOT, env={**os.environ},
        capture_output=True, start_new_session=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL
    assert not (out / "run.json").exists()


def test_five_nights(settings: dict[str, str], tmp_path: Path) -> None:
    """One repeated, one killed and repeated, one of which nothing is left: exact."""
    nights = {f"2026-03-0{day}": night(tmp_path, f"2026-03-0{day}", day) for day in range(1, 6)}
    for date, source in nights.items():
        words = command(settings, source, tmp_path / date)
        if date == "2026-03-03":
            killed_before_the_commit(words, tmp_path / date)
        said = run(words)
        assert f"table      {TABLE}" in said
    again = night(tmp_path, "2026-03-02", 22)
    run(command(settings, again, tmp_path / "2026-03-02"))
    # Every row of the fourth night is cut.
    cut = {"ranking.min_score": 1e9, "output.publish": "always"}
    run(command(settings, nights["2026-03-04"], tmp_path / "2026-03-04", **cut))

    wrong = pd.read_parquet(nights["2026-03-05"]).assign(clicks="many")
    wrong.to_parquet(tmp_path / "wrong.parquet")
    said = run(command(settings, tmp_path / "wrong.parquet", tmp_path / "wrong"), REFUSED)
    assert "clicks is bigint there and string here" in said

    script = f"""
import json
from pyspark.sql import SparkSession
builder = SparkSession.builder.master("local[2]")
for key, value in {settings!r}.items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
sums = spark.sql("SELECT date, count(*), sum(clicks) FROM {TABLE} GROUP BY date ORDER BY date")
runs = spark.table("{TABLE}.snapshots").orderBy("committed_at")
runs = runs.selectExpr("summary['spark-rerank.run-id']")
print(json.dumps([[list(row) for row in sums.collect()], [row[0] for row in runs.collect()]]))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    sums, runs = json.loads(ended.stdout.splitlines()[-1])
    assert sums == [
        ["2026-03-01", 40, 40], ["2026-03-02", 40, 880], ["2026-03-03", 40, 120],
        ["2026-03-05", 40, 200],
    ]  # fmt: skip
    assert len(runs) == len(set(runs)) == 7
    last = json.loads((tmp_path / "2026-03-05" / "run.json").read_text())["run_id"]
    assert runs[4] == last


def test_a_table_is_read_as_it_was_when_the_job_began(spark: SparkSession) -> None:
    name = "lake.search.log"
    rows = spark.createDataFrame([("q", "d", "text")], "query_id string, doc_id string, doc string")
    rows.writeTo(name).create()
    table = read_source(spark, table=name)
    rows.writeTo(name).append()
    assert spark.table(name).count() == 2
    assert table.count() == 1
