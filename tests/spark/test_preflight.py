"""What is refused before any work starts: all at once, with exit code 2 and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs import evaluate
from jobs.config import OutputConfig
from jobs.output.filesystem import Files
from jobs.output.locations import refuse_locations
from jobs.runtime.errors import DONE, REFUSED, ErrorCollector, RefusedError
from tests.conftest import ROOT, SENTENCES
from tests.sample import SAMPLE
from tests.spark.conftest import Job


def findings(said: str) -> list[str]:
    return [line.removeprefix("  - ") for line in said.splitlines() if line.startswith("  - ")]


def test_findings_of_all_kinds_come_in_one_list(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def start(*_: object, **__: object) -> None:
        raise AssertionError("work was started")

    monkeypatch.setattr("jobs.rerank.fill_store", start)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    code = job(
        out, model__name="/no/model", input__query="question", evaluation__slices="tongue",
        evaluation__gate="nDCG@10 >= high", evaluation__qrels="/no/qrels",
        store__path=f"{SAMPLE}/scores",
    )  # fmt: skip
    assert code == REFUSED
    found = findings(capsys.readouterr().err)
    for said in (
        "cannot read", "model folder /no/model does not exist", "no column question",
        "output.path=", "store.path=", "lie in one another", "/no/qrels",
    ):  # fmt: skip
        assert any(said in finding for finding in found), said
    assert len(found) == len(set(found)) >= 7


def test_qrels_and_baselines_of_other_ids_are_refused_before_anything_is_scored(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate over nothing used to pass; now nothing is paid for either."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("work was started")

    monkeypatch.setattr("jobs.rerank.fill_store", start)
    (tmp_path / "qrels").write_text("nobody 0 nothing 1\n")
    out, gate = tmp_path / "out", "nDCG@10 delta >= 0"
    code = job(out, evaluation__qrels=tmp_path / "qrels", evaluation__gate=gate)
    assert code == REFUSED
    said = capsys.readouterr().err
    assert "the queries and the qrels have no id in common" in said and "'nobody' there" in said
    assert not list(out.glob("[!.]*"))


def test_a_gate_that_nothing_can_answer_is_refused(
    job: Job, spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without labels there used to be no evaluation, and the gate passed in silence."""
    out, gate = tmp_path / "out", "AP >= 0"
    assert job(out, evaluation__gate=gate) == REFUSED
    assert "rule 'AP >= 0' cannot be answered without judgements" in capsys.readouterr().err
    rows = [("1", "q", "a", SENTENCES[0], None)]
    schema = "query_id string, query string, doc_id string, doc string, label int"
    spark.createDataFrame(rows, schema).write.parquet(str(tmp_path / "in.parquet"))
    given = {"input__path": tmp_path / "in.parquet", "input__doc_template": None}
    assert job(out, evaluation__gate=gate, input__label="label", **given) == REFUSED
    assert "cannot be answered" in capsys.readouterr().err
    assert not list(out.glob("*"))
    # What the run itself measures needs none.
    stub = {"model__backend": "stub", "evaluation__gate": "reject_rate <= 0.1"}
    assert job(out, **stub) == DONE
    found = json.loads((out / "metrics.json").read_text())
    assert (found["gate"]["passed"], found["operations"]["reject_rate"]) == (True, 0.0)


def test_places_are_tried_and_left_as_they_were(spark: SparkSession, tmp_path: Path) -> None:
    files = Files(spark)
    files.try_write(str(tmp_path / "a" / "b"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kept").write_text("x")
    files.try_write(str(tmp_path / "a" / "b"))
    files.try_write(str(tmp_path / "a"))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]
    for place in (tmp_path / "a" / "kept" / "below", Path("/proc/out")):
        with pytest.raises(OSError, match=r"\w+: "):
            files.try_write(str(place))
    with pytest.raises(OSError, match="UnsupportedFileSystem"):
        files.try_write("nosuch://bucket/out")


@pytest.mark.parametrize(
    ("store", "refused"),
    [
        ("out", True), ("out/ranked/scores", True), ("out/_work", True), (".", True),
        ("out/my-scores", False), ("scores", False),
    ],
)  # fmt: skip
def test_a_store_where_runs_would_delete_it_is_refused(
    store: str, refused: bool, spark: SparkSession, tmp_path: Path
) -> None:
    config, at = OutputConfig(path=str(tmp_path / "out")), str(tmp_path / store)
    errors = ErrorCollector()
    errors.run(refuse_locations, spark, config, [], at)
    assert bool(errors) == refused


@pytest.mark.parametrize(
    ("source", "out", "refused"),
    [
        ("in", "in/../in/out", True), ("in/../in", "in", True), ("link", "in/out", True),
        ("*", "in/out", True), ("i[n]", "in", True), ("*.parquet", "in", False),
        ("{in,x}", "in", True), ("{x,y}", "in", False), ("o[1]", "o1", False),
        ("in", "i[n]", False),
        ("in", "in-2", False), ("in/day=1", "in/day=2", False),
    ],
)  # fmt: skip
def test_overlaps_are_seen_through_dots_links_and_patterns(
    source: str, out: str, refused: bool, spark: SparkSession, tmp_path: Path
) -> None:
    for name in ("in", "o[1]"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    config, errors = OutputConfig(path=f"{tmp_path}/{out}"), ErrorCollector()
    errors.run(refuse_locations, spark, config, [f"{tmp_path}/{source}"])
    assert bool(errors) == refused


def test_a_default_file_system_that_copies_to_rename_is_refused(
    spark: SparkSession, tmp_path: Path
) -> None:
    hadoop = spark._jsc.hadoopConfiguration()  # type: ignore[attr-defined]
    before = hadoop.get("fs.defaultFS")
    hadoop.set("fs.defaultFS", "gs://bucket")
    try:
        with pytest.raises(RefusedError, match=r"^output\.path is on gs://, where a rename"):
            refuse_locations(spark, OutputConfig(path="/out"))
        refuse_locations(spark, OutputConfig(path=f"file:{tmp_path}/out"))
    finally:
        hadoop.set("fs.defaultFS", before)


def test_an_evaluation_reports_everything_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spark: SparkSession
) -> None:
    del spark
    pq.write_table(pa.table({"query_id": ["1"], "doc_id": ["a"]}), tmp_path / "ranked.parquet")
    words = [
        "--ranked.path", f"a={tmp_path}/ranked.parquet", "--ranked.path", "b=/no/ranked",
        "--output.path", "/proc/out", "--report.examples", "2", "--evaluation.qrels", "/no/qrels",
        "--evaluation.metrics", "MMR@10", "--mlflow.enabled", "false",
    ]  # fmt: skip
    assert evaluate.main(words) == REFUSED
    found = findings(capsys.readouterr().err)
    for said in ("lacks score", "/no/ranked", "/proc/out", "report.examples", "/no/qrels", "MMR"):
        assert any(said in finding for finding in found), said


NASTY = [
    "x` ; DROP TABLE pairs; --", "`", "a.b", "*", "in.in", "${x}", "label'); --", "query`.`id",
    "__proto", "a b,c(d)=\t\n",
]  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", "json"])
def test_names_that_look_like_sql_are_only_names(form: str, job: Job, tmp_path: Path) -> None:
    """As columns passed through, as slices, and as the columns of the pair itself."""
    query, doc, *passed = NASTY
    table = pd.DataFrame(
        {
            "query_id": ["1", "1"], query: [SENTENCES[0]] * 2, "doc_id": ["a", "b"],
            doc: SENTENCES[1:3], "label": [0, 1], **{name: [f"v-{name}"] * 2 for name in passed},
        }
    )  # fmt: skip
    source = tmp_path / f"in.{form}"
    if form == "json":
        table.to_json(source, orient="records", lines=True)
    else:
        table.to_parquet(source)
    code = job(
        tmp_path / "out", input__path=source, input__doc_template=None, input__query=query,
        input__doc=doc, evaluation__slices=passed[0], input__label="label",
    )  # fmt: skip
    assert code == DONE
    ranked = pq.read_table(tmp_path / "out" / "ranked").to_pandas()
    assert len(ranked) == 2
    assert set(passed) <= set(ranked.columns)
    for name in passed:
        assert set(ranked[name]) == {f"v-{name}"}


@pytest.mark.parametrize("table", ["x` ; DROP TABLE pairs", "x; DROP TABLE y", "no.such.table"])
def test_a_table_name_never_runs_as_sql(
    table: str, job: Job, spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spark.range(3).createOrReplaceTempView("pairs")
    assert job(tmp_path / "out", input__path=None, input__table=table) == REFUSED
    assert "cannot be read" in capsys.readouterr().err
    assert spark.table("pairs").count() == 3
    spark.catalog.dropTempView("pairs")


def evil(kind: str, folder: Path) -> str:
    """Make a model folder malicious; what must be said of it."""
    mark = folder.parent / "was-run"
    code = f"open({str(mark)!r}, 'w')\nclass Model: pass\n"
    (folder / "modeling.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    if kind == "auto_map":
        config["auto_map"] = {"AutoModelForSequenceClassification": "modeling.Model"}
    elif kind == "internal":
        config["_attn_implementation_internal"] = "evil/kernels"
    elif kind == "pickle":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cbuiltins\nexec\n.")
    elif kind == "index":
        (folder / "model.safetensors").rename(folder / "model-1-of-1.safetensors")
        index = {"weight_map": {"x": "../../evil.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return {
        "auto_map": "asks for code of its own (auto_map)",
        "internal": "names kernels of the hub (_attn_implementation_internal)",
        "pickle": "which can run code",
        "index": "none of this folder's weight files",
    }[kind]


@pytest.mark.parametrize("kind", ["auto_map", "internal", "pickle", "index"])
def test_a_malicious_model_is_refused_and_nothing_of_it_runs(
    kind: str, job: Job, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    said = evil(kind, folder)
    out = tmp_path / "out"
    assert job(out, model__name=folder) == REFUSED
    assert said in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("way", ["SPARK_REMOTE", "spark.remote"])
def test_spark_connect_is_refused_in_a_sentence(way: str, tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--input.path", str(SAMPLE), "--model.name", str(tiny_bert),
             "--model.max_length", "64", "--output.path", str(out)]  # fmt: skip
    words += ["--spark.settings", "spark.remote=local[2]"] if way == "spark.remote" else []
    environment = {**os.environ, **({"SPARK_REMOTE": "local[2]"} if way == "SPARK_REMOTE" else {})}
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.rerank", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ended.returncode == REFUSED
    assert findings(ended.stderr) == [
        f"{way}=local[2] asks for Spark Connect, which gives a client no driver JVM to move "
        "results into place with; use a classic session (spark-submit, spark.master, or a "
        "Databricks cluster with dedicated access)"
    ]
    assert not out.exists()


def test_a_refusal_is_the_last_thing_said(tiny_bert: Path, tmp_path: Path) -> None:
    """The head start of the workers, under way by then, is not cut short with a stack."""
    words = ["--input.path", str(SAMPLE), "--input.query", "question", "--model.name",
             str(tiny_bert), "--model.max_length", "64", "--output.path",
             str(tmp_path / "out")]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.rerank", *words],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    assert ended.returncode == REFUSED, ended.stderr
    _, said = ended.stderr.split("refused, nothing was published:\n")
    assert said.startswith("  - ")
    assert "question" in said.splitlines()[0]
    assert all(line.startswith("  - ") for line in said.splitlines()), said


def test_the_event_log_holds_no_secret(tmp_path: Path) -> None:
    """Spark's own pattern lets a SAS token and a data source name pass."""
    code = """
import sys
from jobs.config import SparkConfig
from jobs.runtime.session import open_session

settings = {
    "spark.eventLog.enabled": "true", "spark.eventLog.compress": "false",
    "spark.eventLog.dir": sys.argv[1], "spark.eventLog.rolling.enabled": "false",
    "spark.hadoop.fs.azure.sas.fixed": "hush-sas", "spark.executorEnv.SENTRY_DSN": "hush-dsn",
    "spark.hadoop.fs.s3a.secret.key": "hush-key", "spark.hadoop.my.host": "not-hidden",
}
spark = open_session(SparkConfig.model_validate({"settings": settings, "master": "local[1]"}))
spark.range(3).count()
spark.stop()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path.as_uri()],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    (log,) = [file for file in tmp_path.iterdir() if not file.name.startswith(".")]
    written = log.read_text() + ended.stderr + ended.stdout
    assert "not-hidden" in written
    assert "hush" not in written


def test_an_architecture_that_cannot_score_is_refused_before_the_input_is_read(
    job: Job, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "none such"}))
    assert job(tmp_path / "out", model__name=folder) == REFUSED
    assert "cannot score a pair (KeyError: 'none such')" in capsys.readouterr().err


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("ranked", "would be in Spark's own catalog"),
        ("lake.search.ranked", "cannot be looked up (REQUIRES_SINGLE_PART_NAMESPACE)"),
        ("no name.at all", "cannot be looked up (PARSE_SYNTAX_ERROR)"),
    ],
)
def test_a_table_that_cannot_be_written_is_refused_before_anything_is_scored(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    table: str, said: str, dry_run: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("jobs.rerank.fill_store", None)
    out = tmp_path / "out"
    assert job(out, output__table=table, model__backend="stub", dry_run=dry_run) == REFUSED
    assert said in capsys.readouterr().err
    assert not (out / "run.json").exists()
