"""A cross-encoder is trained on lists, measured on others, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

pytest.importorskip("datasets")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from jobs.config import ModelConfig
from jobs.distill import losses
from jobs.distill.__main__ import main
from jobs.distill.evaluator import ndcg
from jobs.distill.folders import make_start
from jobs.output.tracking.client import fetch_model
from jobs.runtime.errors import DONE, NOT_TRACKED, REFUSED, RefusedError
from jobs.scoring.models import resolve_model
from tests.conftest import ROOT, SENTENCES, Database
from udfs.checkpoint import inspect_checkpoint
from udfs.kinds import is_encoder


def make_lists(path: Path, count: int = 48) -> Path:
    """Queries whose relevant document is the one of the same sentence."""
    rng, rows = np.random.default_rng(7), []
    for number in range(count):
        chosen = rng.permutation(len(SENTENCES))[:4]
        relevant = [1, 0, 0, 0]
        rows.append({
            "query": SENTENCES[chosen[0]].split("?")[0][:30],
            "docs": [SENTENCES[i] for i in chosen],
            "scores": [3.0 * label for label in relevant] if number % 3 else None,
            "labels": relevant,
            "split": "dev" if number % 6 == 0 else "train",
        })  # fmt: skip
    pd.DataFrame(rows).to_parquet(path)
    return path


def options(lists: Path, model: Path, out: Path, **more: object) -> list[str]:
    keys = {
        "distill.lists": lists, "model.name": model, "output.path": out, "model.max_length": 64,
        "mlflow.enabled": "false", "distill.batch": 4, "distill.epochs": 4, "distill.rate": 2e-3,
        "distill.evaluations": 4, "distill.patience": 0, **more,
    }  # fmt: skip
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


def curve(out: Path) -> list[float]:
    states = sorted(out.glob("checkpoints/*/trainer_state.json"), key=lambda p: p.stat().st_mtime)
    history = json.loads(states[-1].read_text())["log_history"]
    return [row["eval_ndcg@10"] for row in history if "eval_ndcg@10" in row]


def test_a_shorter_model_learns_the_lists(tiny_bert: Path, tmp_path: Path) -> None:
    lists, out = make_lists(tmp_path / "lists.parquet", 96), tmp_path / "out"
    shorter = {"distill.layers": 1, "distill.weights": "float8", "distill.epochs": 12}
    words = options(lists, tiny_bert, out, **shorter)
    words += ["--distill.losses", "listwise_kl=0.6", "--distill.losses", "contrastive=0.4"]
    words += ["--distill.losses", "lambda=0.1", "--distill.losses", "pointwise=0.1"]
    words += ["--distill.losses", "margin_mse=0.01"]
    assert main(words) == DONE
    assert max(curve(out)) > 0.75  # 0.64 by chance, 0.91 to 1 after training
    inspect_checkpoint(out / "model")
    assert json.loads((out / "model" / "config.json").read_text())["num_hidden_layers"] == 1
    assert "nDCG@10" in (out / "model" / "README.md").read_text()


def test_what_cannot_be_trained_on_is_refused(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = make_lists(tmp_path / "lists.parquet", 12)
    frame = pd.read_parquet(lists)
    for broken, said in (
        (frame.drop(columns="split"), "lacks split"),
        (frame.drop(columns=["scores", "labels"]), "lacks scores and labels"),
        (frame[frame["split"] == "train"], "others with labels"),
        (frame.drop(columns="scores"), "distill.losses=listwise_kl needs scores"),
        (frame.assign(query=["q", None] * 6), "6 rows have no query, or a doc that is no text"),
        (frame.assign(docs=[["a", None, "b", "c"]] * 12), "12 rows have no query, or a doc"),
        (frame.assign(docs=[None, *frame["docs"][1:]]), "1 rows have no query, or a doc"),
        (frame.assign(labels=[[1]] * len(frame)), "12 rows have not as many labels as docs"),
    ):
        broken.to_parquet(lists)
        assert main(options(lists, tiny_bert, tmp_path / "out")) == REFUSED
        assert said in capsys.readouterr().err
    frame.to_parquet(lists)
    assert main(options(lists, tiny_bert, tmp_path / "out", **{"distill.layers": 2})) == REFUSED
    assert "has 2 layers; name some of 0 to 1" in capsys.readouterr().err
    twice = options(lists, tiny_bert, tmp_path / "out", **{"distill.layers": 1})
    assert main([*twice, "--distill.layers", "1"]) == REFUSED
    assert "name some of 0 to 1, each once" in capsys.readouterr().err
    for key, value in (("model.query_instruction", "Q: "), ("model.trust_remote_code", "true")):
        assert main(options(lists, tiny_bert, tmp_path / "out", **{key: value})) == REFUSED
        assert f"{key}: jobs.distill has no use for it" in capsys.readouterr().err


def test_an_encoder_without_a_head_gets_one(tiny_bert: Path, tmp_path: Path) -> None:
    """A bi-encoder of sentence-transformers, whose modules are no part of the cross-encoder."""
    lists, folder = make_lists(tmp_path / "lists.parquet", 96), tmp_path / "encoder"
    SentenceTransformer(
        modules=[body := Transformer(str(tiny_bert)), Pooling(body.get_embedding_dimension())]
    ).save(str(folder))
    assert is_encoder(folder)
    out = tmp_path / "out"
    assert main(options(lists, folder, out, **{"distill.epochs": 12})) == DONE
    assert max(curve(out)) > 0.75
    whole, few = inspect_checkpoint(out / "model"), tmp_path / "few"
    pd.read_parquet(lists).head(2).to_parquet(lists)
    assert main(options(lists, folder, few, **{"distill.vocabulary": "seen"})) == DONE
    assert inspect_checkpoint(few / "model").parameters < whole.parameters


@pytest.mark.parametrize("kind", ["distilbert", "modernbert"])
def test_layers_are_taken_from_other_architectures(
    kind: str, tiny_bert: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    sizes = {
        "distilbert": {"dim": 32, "n_heads": 2, "n_layers": 3, "hidden_dim": 64},
        "modernbert": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3,
                       "intermediate_size": 64, "cls_token_id": 2, "sep_token_id": 3},
    }  # fmt: skip
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes[kind]
    )
    whole = AutoModel.from_config(config)
    whole.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    start = make_start(tmp_path / "whole", [0, 2], 7, tmp_path)
    if kind == "modernbert":  # whose first layer has no norm before its attention
        with pytest.raises(RefusedError, match="not like the others; start with 0"):
            make_start(tmp_path / "whole", [1, 2], 7, tmp_path / "other")
    shorter = AutoModelForSequenceClassification.from_pretrained(start)
    assert shorter.config.num_hidden_layers == 2
    layers = next(m for m in whole.modules() if isinstance(m, torch.nn.ModuleList))
    kept = next(m for m in shorter.modules() if isinstance(m, torch.nn.ModuleList))
    for mine, source in zip(kept, (layers[0], layers[2]), strict=True):
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(value, source.state_dict()[name])


def test_training_that_stopped_early_has_ended(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two measurements without progress, also across a kill; the same command changes nothing."""
    lists, out = make_lists(tmp_path / "lists.parquet"), tmp_path / "out"
    slow = {"distill.patience": 2, "distill.evaluations": 8, "distill.rate": 1e-12}
    words = options(lists, tiny_bert, out, **slow)
    assert main(words) == DONE
    assert len(curve(out)) == 3
    last, weights = out / "checkpoints" / "checkpoint-15", out / "model" / "model.safetensors"
    whole = weights.read_bytes()
    (out / "checkpoints" / "curve.json").unlink()  # as if killed before the third measurement
    shutil.rmtree(last)
    assert main(words) == DONE
    assert len(curve(out)) == 3
    assert weights.read_bytes() == whole
    (out / "checkpoints" / "curve.json").unlink()  # as if killed behind it
    assert main(words) == DONE
    assert len(curve(out)) == 3
    assert weights.read_bytes() == whole
    files = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*")}
    assert main(words) == DONE
    assert files == {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*")}
    capsys.readouterr()
    assert main([*words, "--distill.weights", "fp16"]) == REFUSED
    assert main([*words, "--distill.rate", "0.001"]) == REFUSED
    assert "a training with other rate; choose another folder" in capsys.readouterr().err
    assert main([*words, "--distill.rate", "0.001", "--output.overwrite", "true"]) == DONE
    assert weights.read_bytes() != whole


def test_training_without_a_server_is_logged_later(
    tiny_bert: Path, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "unset")
    lists, out = make_lists(tmp_path / "lists.parquet"), tmp_path / "out"
    logged = {"mlflow.enabled": "true", "distill.register_as": "student", "distill.epochs": 1}
    down = {"mlflow.tracking_uri": "http://127.0.0.1:9"}
    try:
        assert main(options(lists, tiny_bert, out, **logged, **down)) == NOT_TRACKED
        assert "MLflow has not all of it: http://127.0.0.1:9" in capsys.readouterr().err
        whole = (out / "model" / "model.safetensors").read_bytes()
        uri = database(tmp_path / "mlflow.db")
        up = {"mlflow.tracking_uri": uri}
        assert main(options(lists, tiny_bert, out, **logged, **up)) == DONE
        assert "models:/student/1" in capsys.readouterr().out
        assert logged_curve(uri) == pytest.approx(curve(out))
        assert (out / "model" / "model.safetensors").read_bytes() == whole
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_curve(
    tiny_bert: Path, tmp_path: Path, database: Database
) -> None:
    lists = make_lists(tmp_path / "lists.parquet")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(options(lists, tiny_bert, whole)) == DONE
    uri = database(tmp_path / "mlflow.db")
    logged = {"mlflow.enabled": "true", "mlflow.tracking_uri": uri}
    words = options(lists, tiny_bert, killed, **logged)
    process = subprocess.Popen([sys.executable, "-m", "jobs.distill", *words], cwd=ROOT)
    while process.poll() is None and not list(killed.glob("checkpoints/*/trainer_state.json")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "model").exists()
    assert main(words) == DONE
    np.testing.assert_allclose(curve(killed), curve(whole), atol=1e-6)
    assert logged_curve(uri) == pytest.approx(curve(whole), abs=1e-6)
    assert main(options(lists, tiny_bert, killed, **{"distill.rate": 1e-3})) == REFUSED
    frame = pd.read_parquet(lists)
    frame.assign(query=frame["query"][::-1].to_numpy()).to_parquet(lists)
    assert main(words) == REFUSED


def logged_curve(uri: str) -> list[float]:
    """Return the curve of the only run of a server, the last value of each step."""
    client = MlflowClient(uri)
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "eval_ndcg_10")
    return [value for _, value in sorted({p.step: p.value for p in points}.items())]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["machine", "cluster"])
def test_two_processes_share_the_lists(
    where: str, tiny_bert: Path, tmp_path: Path, database: Database
) -> None:
    """The same steps as in one process, from other batches; one model, one run."""
    lists, out = make_lists(tmp_path / "lists.parquet", 96), tmp_path / "out"
    uri = database(tmp_path / "mlflow.db")
    words = options(lists, tiny_bert, out, **{
        "distill.epochs": 12, "distill.processes": 2, "distill.cluster": where == "cluster",
        "spark.master": "local[2]", "mlflow.enabled": "true", "mlflow.tracking_uri": uri,
    })  # fmt: skip
    # Tasks import the package as it is installed; here that is this checkout.
    called = subprocess.run(
        [sys.executable, "-m", "jobs.distill", *words], cwd=ROOT, check=False, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert called.returncode == DONE, called.stderr
    state = json.loads(max(out.glob("checkpoints/*/trainer_state.json")).read_text())
    assert state["max_steps"] == 240  # 80 lists in steps of 4, 12 times
    assert max(curve(out)) > 0.75
    assert logged_curve(uri) == pytest.approx(curve(out))
    inspect_checkpoint(out / "model")
    assert main([word if word != "2" else "4" for word in words]) == REFUSED  # another run's


def test_processes_that_cannot_share_a_step_are_refused(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists, out = make_lists(tmp_path / "lists.parquet", 12), tmp_path / "out"
    cluster = {
        "distill.cluster": "true", "spark.master": "spark://host:7077", "mlflow.enabled": "true",
        "mlflow.tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
    }  # fmt: skip
    for more, said in (
        (
            {"distill.processes": 3},
            "distill.batch=4 lists cannot be shared out evenly to distill.p",
        ),
        (cluster, "mlflow.tracking_uri is on this machine"),
        ({"output.path": "hdfs://nn/out"}, "output.path=hdfs://nn/out has to be a local path"),
    ):
        assert main(options(lists, tiny_bert, out, **more)) == REFUSED
        assert said in capsys.readouterr().err


def test_losses_are_least_where_the_targets_are_met() -> None:
    nan = torch.nan
    scores = torch.tensor([[2.0, 0.0, -1.0], [1.0, 3.0, nan]])
    assert losses.listwise_kl(scores.nan_to_num(9.0) + 5, scores).abs() < 1e-6
    assert losses.margin_mse(scores.nan_to_num(9.0) + 5, scores).abs() < 1e-6
    flat = torch.zeros_like(scores)
    margins = [(2 - 0, 2 + 1, 0 + 1), (1 - 3,)]
    expected = np.mean([2 * sum(m**2 for m in margins[0]) / 9, 2 * margins[1][0] ** 2 / 4])
    assert losses.margin_mse(flat, scores).item() == pytest.approx(expected)
    labels = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, nan]])
    for name, loss in losses.FROM_LABELS.items():
        assert loss(4 * scores - 4, labels) < loss(flat, labels), name


def test_ndcg_takes_labels_below_zero_for_irrelevant() -> None:
    assert ndcg([3.0, 2.0, 1.0], [-1, 1, 0]) == pytest.approx(1 / np.log2(3))


def test_a_registered_student_is_what_a_run_scores_with(
    tiny_bert: Path, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Two trainings, the alias on the second: curves in MLflow, and the files themselves."""
    import mlflow

    uri, lists = database(tmp_path / "mlflow.db"), make_lists(tmp_path / "lists.parquet", 24)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    before, client = mlflow.get_tracking_uri(), MlflowClient(uri)
    more = {
        "mlflow.enabled": "true", "mlflow.tracking_uri": uri, "mlflow.experiment": "students",
        "distill.register_as": "student@champion", "distill.epochs": 1,
    }  # fmt: skip
    try:
        for number, layers in enumerate(([], ["--distill.layers", "1"]), start=1):
            out = tmp_path / f"out{number}"
            assert main([*options(lists, tiny_bert, out, **more), *layers]) == DONE
            assert f"models:/student/{number}" in capsys.readouterr().out
            version = client.get_model_version_by_alias("student", "champion")
            assert int(version.version) == number
            run = client.get_run(str(version.run_id))
            assert run.info.status == "FINISHED"
            logged = client.get_metric_history(run.info.run_id, "eval_ndcg_10")
            assert [point.value for point in logged] == pytest.approx(curve(out))
            losses = client.get_metric_history(run.info.run_id, "loss")
            assert len(losses) == 5 and all(np.isfinite(point.value) for point in losses)
            assert Path(run.info.artifact_uri.removeprefix("file:")).is_relative_to(tmp_path)
        fetch = partial(fetch_model, uri)
        digests = [inspect_checkpoint(tmp_path / f"out{n}" / "model").digest for n in (1, 2)]
        assert len({*digests}) == 2
        for name, digest in (("student/1", digests[0]), ("student@champion", digests[1])):
            found = resolve_model(ModelConfig(name=f"models:/{name}", max_length=64), fetch)
            assert found.digest == digest
            assert found.path.is_relative_to(tmp_path / "cache")
        for name in ("student@nobody", "student/9", "teacher@champion"):
            said = rf"models:/{name} cannot be fetched .* its name, its version or alias"
            with pytest.raises(RefusedError, match=said):
                resolve_model(ModelConfig(name=f"models:/{name}", max_length=64), fetch)
    finally:
        mlflow.set_tracking_uri(before)


def test_a_registry_that_is_not_there_is_refused(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedError, match=r"no registry in .*mlflow\.db; set mlflow\.tracking_ur"):
        fetch_model(None, "models:/student@champion", tmp_path / "cache")
    assert not (tmp_path / "mlflow.db").exists()
    words = options(make_lists(tmp_path / "lists.parquet", 12), tiny_bert, tmp_path / "out")
    assert main([*words, "--distill.register_as", "student"]) == REFUSED
    assert "distill.register_as=student needs MLflow" in capsys.readouterr().err
    assert main([*words, "--distill.register_as", "a/b"]) == REFUSED
    assert "distill.register_as=a/b is no name of a registered model" in capsys.readouterr().err
