"""Secrets and texts, looked for in everything that a run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.runtime.errors import DONE, NOT_TRACKED
from tests.faults import servers
from tests.faults.conftest import Job, write_input
from tests.faults.daemon import Faults

pytestmark = pytest.mark.slow

# No word that sounds like a secret: what hides it has to go by its name or its place.
TEXT, SECRET = "zqxsentineltext", "zqxsentinelseven"


def hits(folder: Path, needle: str) -> list[str]:
    """Files that hold a string: in their bytes, or in a value of a Parquet table."""
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            if file.suffix == ".parquet":
                content += str(pq.ParquetFile(file).read().to_pylist()).encode()
            if needle.encode() in content:
                found.append(str(file))
    return found


def write_pairs(file: Path) -> None:
    """The sample, with a text in it that must not come out anywhere: scored, rejected, broken."""
    write_input(file)
    lines = file.read_text("utf-8").splitlines()
    row = {**json.loads(lines[0]), "query_id": "s", "query": f"what is {TEXT}"}
    special = [
        {**row, "doc_id": "scored", "body": f"it is {TEXT}"},
        {**row, "doc_id": "blank", "title": "", "body": " "},
        {**row, "doc_id": "twice", "body": f"{TEXT} one"},
        {**row, "doc_id": "twice", "body": f"{TEXT} two"},
        {**row, "doc_id": "number", "body": TEXT, "retrieval_score": TEXT},
        {**row, "doc_id": "huge", "body": f"{TEXT} " * 20_000},
    ]
    broken = f'{{"query_id": "s", "query": "{TEXT}", "body": "{TEXT}'
    half = json.dumps(special[0]).replace("it is", "\\ud800")
    file.write_text("\n".join([*lines, *map(json.dumps, special), broken, half]) + "\n", "utf-8")


@pytest.mark.parametrize("how", ["well", "badly"])
def test_no_secret_and_no_text_is_in_anything_a_run_leaves(
    how: str, job: Job, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Well: against a real MLflow server. Badly: it answers with errors, workers die."""
    aside = tmp_path_factory.mktemp("aside")  # what is the user's own: input and configuration
    write_pairs(aside / "pairs.jsonl")
    assert hits(aside, TEXT)
    events = tmp_path / "events"
    events.mkdir()
    settings = {
        "spark.eventLog.enabled": "true", "spark.eventLog.dir": events.as_uri(),
        "spark.eventLog.compress": "false", "spark.eventLog.rolling.enabled": "false",
        "spark.hadoop.fs.s3a.secret.key": SECRET,
        "spark.hadoop.fs.azure.account.key.box.dfs.core.windows.net": SECRET,
        "spark.hadoop.fs.azure.sas.fixed.box": SECRET,
        "spark.hadoop.my.address": f"jdbc:db://user:{SECRET}@host/x",
    }  # fmt: skip
    environment = {"AWS_SECRET_ACCESS_KEY": SECRET, "MY_SETTING": SECRET}
    server = servers.mlflow(tmp_path) if how == "well" else servers.failing()
    out, fired = tmp_path / "out", tmp_path / "fired"
    with server as address:
        ended = Job(aside, job.keys).run(
            out,
            Faults(fired=str(fired), kill="worker" if how == "badly" else ""),
            environment=environment,
            input__path=aside / "pairs.jsonl", input__label="label",
            spark__settings={**settings, "spark.local.dir": str(tmp_path / "local")},
            mlflow__enabled=True, mlflow__timeout=60,
            mlflow__tracking_uri=address.replace("://", f"://user:{SECRET}@"),
        )  # fmt: skip
    (tmp_path / "said").write_text(ended.out + ended.err)
    assert ended.code == (DONE if how == "well" else NOT_TRACKED), ended.err[-3000:]
    assert fired.exists() == (how == "badly")
    # What was searched was there: events, rejects, the report, and the server's database.
    event_log = next(events.iterdir()).read_text()
    assert '"Event":"SparkListenerTaskEnd"' in event_log
    assert "spark.hadoop.my.address" in event_log
    rejects = pq.read_table(out / "rejects").to_pandas()
    assert {"missing_doc", "conflicting_duplicate", "unreadable_number", "malformed_record",
            "lone_surrogate"} <= set(rejects["reason"])  # fmt: skip
    assert (out / "report.html").stat().st_size > 10_000
    assert (tmp_path / "mlflow.db").exists() == (how == "well")
    assert "***@127.0.0.1" in (out / "run.json").read_text()
    for needle in (TEXT, SECRET):
        assert not hits(tmp_path, needle)
