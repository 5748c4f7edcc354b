"""jobs.tune on real data with a real (tiny) model, and what becomes of its recommendation."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pyspark.sql import SparkSession

from jobs import rerank
from jobs.config import Config, MlflowConfig, TuneConfig
from jobs.evaluation.qrels import from_labels
from jobs.input.layouts import read_input
from jobs.input.texts import Rendering
from jobs.output.tracking.client import track
from jobs.runtime.errors import DONE, REFUSED
from jobs.scoring.onnx_export import missing_packages
from jobs.tune import __main__ as command
from jobs.tune.sample import draw_sample
from jobs.tune.settings import engines
from tests.sample import SAMPLE
from tests.unit.test_report import Page
from tests.unit.test_scorer import GPT2, other_model


def words(keys: dict[str, object]) -> list[str]:
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def tuned(
    spark: SparkSession, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, object]]:
    """One run for all tests of this file: every setting starts a process."""
    folder = tmp_path_factory.mktemp("tune")
    given = {
        "input.path": SAMPLE, "input.doc_template": "{title}\\n{body}", "model.name": tiny_bert,
        "model.max_length": 64,
    }  # fmt: skip
    keys = given | {
        "output.path": folder / "out", "mlflow.tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "tune.seconds": 15, "tune.pairs": 48, "tune.max_tokens": 1024, "tune.max_pairs": 8,
        "tune.min_tau": 0.5, "tune.max_loss": 1,
    }  # fmt: skip
    assert command.main(words(keys)) == DONE
    return folder, given


@pytest.mark.slow
def test_the_recommended_file_is_taken_by_the_job(
    tuned: tuple[Path, dict[str, object]], spark: SparkSession
) -> None:
    folder, given = tuned
    recommended = folder / "out" / "recommended.yaml"
    content = yaml.safe_load(recommended.read_text())
    assert set(content) == {"model", "batching"}
    given = {key: value for key, value in given.items() if not key.startswith("model.")}
    keys = {"config": recommended, **given, "output.path": folder / "ranked"}
    assert rerank.main(words({**keys, "mlflow.enabled": "false"})) == DONE
    run = json.loads((folder / "ranked" / "run.json").read_text())
    assert run["model"]["precision"] == content["model"]["precision"]
    assert run["config"]["model"]["max_length"] == content["model"]["max_length"]
    assert run["config"]["batching"]["max_tokens"] == content["batching"]["max_tokens"]


@pytest.mark.slow
def test_every_row_is_written_and_no_text(tuned: tuple[Path, dict[str, object]]) -> None:
    out = tuned[0] / "out"
    document = json.loads((out / "tune.json").read_text())
    rows = document["rows"]
    tried = engines(TuneConfig(), document["device"], has_onnx=not missing_packages())
    assert {(row["backend"], row["precision"]) for row in rows} == set(tried)
    assert sum(row["recommended"] for row in rows) == 1
    measured = [row for row in rows if row["outcome"] == "ok"]
    assert measured, "however slow the machine, there is the reference"
    for row in measured:
        assert row["pairs_per_s"] > 0 and row["memory_mb"] > 50 and row["runs"] >= 1
    assert rows[0]["kendall_tau"] == pytest.approx(1.0)
    assert rows[0]["ndcg_delta"] == pytest.approx(0.0)
    cuts = document["lengths"]["cuts"]
    assert [cut["share_cut"] for cut in cuts] == sorted(
        (c["share_cut"] for c in cuts), reverse=True
    )
    written = (out / "tune.json").read_text() + (out / "tune.html").read_text()
    for line in SAMPLE.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["body"] not in written


@pytest.mark.slow
def test_every_setting_is_a_run_below_the_tunings(tuned: tuple[Path, dict[str, object]]) -> None:
    from mlflow.tracking import MlflowClient

    folder = tuned[0]
    document = json.loads((folder / "out" / "tune.json").read_text())
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("spark-rerank")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if run.info.run_id == document["mlflow_run_id"])
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert len(children) == len(document["rows"]) == len(runs) - 1
    best = next(run for run in children if run.data.tags["recommended"] == "True")
    assert best.data.metrics["pairs_per_s"] == document["rates"]["pairs_per_s"]
    assert best.data.params["precision"] == document["recommended"]["model"]["precision"]
    # Logged again, nothing is doubled.
    uri = f"sqlite:///{folder}/mlflow.db"
    assert track(folder / "out" / "tune.json", MlflowConfig(tracking_uri=uri)) == parent.info.run_id
    assert len(client.search_runs([experiment.experiment_id])) == len(runs)
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert names == {"tune.json", "tune.html", "recommended.yaml"}


@pytest.mark.slow
def test_the_page_is_whole(tuned: tuple[Path, dict[str, object]]) -> None:
    html = (tuned[0] / "out" / "tune.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags["script"] == 0
    for part in ("Throughput against agreement", "Lengths", "All settings"):
        assert part in html


def test_a_model_that_cannot_score_is_refused_before_anything_is_measured(
    spark: SparkSession, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = other_model(tiny_bert, tmp_path / "gpt2", GPT2)
    keys = {
        "input.path": SAMPLE, "input.doc": "text", "model.name": model, "model.max_length": 64,
        "output.path": tmp_path / "out", "mlflow.enabled": "false",
    }  # fmt: skip
    assert command.main(words(keys)) == REFUSED
    said = capsys.readouterr().err
    assert "cannot score a pair" in said and "has no column text" in said


def test_what_is_tried_is_what_the_executors_are_good_at(spark: SparkSession) -> None:
    device = command.device_of(spark, Config())
    engine = ("torch", "fp32" if device == "cpu" else "bf16")
    assert engine in engines(TuneConfig(), device, has_onnx=False)


def test_a_sample_is_whole_queries_with_relevant_candidates(spark: SparkSession) -> None:
    config = Config.model_validate({"input": {"path": str(SAMPLE), "doc": "body"}})
    pairs = read_input(spark, config.input, Rendering())
    qrels = from_labels(pairs.rows.select("query_id", "doc_id", "label"))
    tune = TuneConfig(pairs=40, candidates=4)
    drawn = draw_sample(pairs, qrels, tune, on_gpu=False)
    assert len(drawn) == 40 and drawn["query_id"].nunique() == 10
    ids = drawn["query_id"].to_list()
    assert ids == sorted(ids, key=ids.index), "not together"
    for _, candidates in drawn.groupby("query_id"):
        assert len(candidates) == 4 and candidates["grade"].max() > 0
    again = draw_sample(pairs, qrels, tune, on_gpu=False)
    pd.testing.assert_frame_equal(again, drawn)
    other = draw_sample(pairs, None, tune.model_copy(update={"seed": 1}), on_gpu=False)
    assert other["doc_id"].to_list() != drawn["doc_id"].to_list()
    assert other["grade"].isna().all()
