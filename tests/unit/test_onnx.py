"""The ONNX Runtime backend: the same scores as torch's, and an answer where it cannot be had."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs import preflight, rerank
from jobs.config import Config
from jobs.demo import FOLDER
from jobs.runtime.cli import load_config
from jobs.runtime.errors import REFUSED, RefusedError
from jobs.scoring import onnx_export as export
from tests.sample import EVERY_PAIR
from tests.unit.test_parity import DOCS, MAX_LENGTH, QUERIES
from udfs.checkpoint import Checkpoint, inspect_checkpoint
from udfs.devices import TaskSlot
from udfs.encoding.pairs import PairEncoder
from udfs.forward.onnx import OnnxModel
from udfs.forward.transformers import ModelError
from udfs.scorers.base import OK, OUT_OF_MEMORY, Scores
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import Precision, ScorerSpec

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for all tests: exporting takes seconds."""
    folder = tmp_path_factory.getbasetemp() / "onnx-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def onnx_spec(copy: Checkpoint, precision: Precision = "fp32", **changes: Any) -> ScorerSpec:
    return ScorerSpec(
        str(copy.path), copy.digest, backend="onnxruntime", runtime=copy.runtime,
        precision=precision, **{"max_length": MAX_LENGTH, **changes},
    )  # fmt: skip


def load(copy: Checkpoint, precision: Precision = "fp32", **changes: Any) -> Scorer:
    return Scorer.load(copy.path, onnx_spec(copy, precision, **changes), TaskSlot(1))


def torch_scores(folder: Path) -> Scores:
    spec = ScorerSpec(str(folder), "", max_length=MAX_LENGTH)
    return Scorer.load(folder, spec, TaskSlot(1)).score(QUERIES, DOCS)


def test_float32_scores_as_torch_does(tiny_model: Path) -> None:
    copy = export.export(inspect_checkpoint(tiny_model), "fp32")
    ours, theirs = load(copy).score(QUERIES, DOCS), torch_scores(tiny_model)
    np.testing.assert_allclose(ours.logit, theirs.logit, rtol=1e-4, atol=1e-4)
    assert np.ptp(theirs.logit) > 0.1, "scores that are all the same would always agree"
    np.testing.assert_array_equal(ours.n_tokens, theirs.n_tokens)


def test_a_copy_is_made_once_and_says_how_far_it_is_from_torch(
    tiny_bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = inspect_checkpoint(tiny_bert)
    monkeypatch.setattr(export, "_EXPORTER", "of this test")
    first = export.export(checkpoint, "fp32")
    assert "logits differ by at most" in capsys.readouterr().out
    parity = json.loads((first.path / export.PARITY).read_text())
    assert parity["pairs"] == EVERY_PAIR
    assert parity["max_abs_difference"] < 1e-4
    assert parity["ndcg_torch"] == pytest.approx(parity["ndcg_onnx"], abs=1e-3)
    assert export.export(checkpoint, "fp32") == first
    assert capsys.readouterr().out == ""
    assert [path.name for path in first.path.parent.glob("tmp*")] == []


@pytest.fixture
def int8(tiny_bert: Path) -> Checkpoint:
    return export.export(inspect_checkpoint(tiny_bert), "int8")


def test_int8_of_a_graph_that_scores_otherwise_is_refused(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export._compare

    def compare(checkpoint: Checkpoint, copy: Checkpoint, precision: Precision) -> dict[str, Any]:
        apart = {"max_abs_difference": 0.5} if precision == "fp32" else {}
        return {**real(checkpoint, copy, precision), **apart}

    monkeypatch.setattr(export, "_compare", compare)
    monkeypatch.setattr(export, "_EXPORTER", "that fails")
    with pytest.raises(RefusedError, match=r"scores by up to 0\.5 otherwise than torch"):
        export.export(inspect_checkpoint(tiny_bert), "int8")


@pytest.mark.slow
def test_the_report_of_the_export_says_what_int8_costs() -> None:
    """The embedded model is none for int8: flags of 256 leave activations few of its steps."""
    copy = export.export(inspect_checkpoint(FOLDER / "model"), "int8")
    parity = json.loads((copy.path / export.PARITY).read_text())
    assert parity["ndcg_torch"] > 0.8
    assert 0.1 < parity["ndcg_torch"] - parity["ndcg_onnx"] < 0.4


def test_an_int8_score_does_not_depend_on_the_other_pairs(int8: Checkpoint) -> None:
    """onnxruntime rounds by the largest value of a batch; a pair was off by 0.3 of a logit."""
    together = load(int8, "int8").score(QUERIES, DOCS)
    alone = load(int8, "int8", max_pairs=1).score(QUERIES, DOCS)
    assert np.ptp(together.logit) > 0.1
    np.testing.assert_array_equal(together.logit, alone.logit)


def test_a_row_that_int8_loses_can_be_scored_in_float32(int8: Checkpoint) -> None:
    names = {file.name for file in int8.path.iterdir()}
    assert {"int8.onnx", "fp32.onnx", "tokenizer.json", "config.json"} <= names


def test_the_fingerprint_tells_backends_precisions_and_runtimes_apart() -> None:
    spec = ScorerSpec("/m", "d", backend="onnxruntime", runtime="onnxruntime 1.31.1, a")
    others = [
        replace(spec, precision="int8"),
        replace(spec, backend="torch", runtime=""),
        replace(spec, runtime="onnxruntime 1.31.2, a"),
        replace(spec, runtime="onnxruntime 1.31.1, b"),
    ]
    assert len({spec.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_an_executor_with_another_version_is_refused(tiny_bert: Path) -> None:
    copy = export.export(inspect_checkpoint(tiny_bert), "fp32")
    with pytest.raises(ModelError, match=r"has onnxruntime .* those of onnxruntime 0\.1"):
        load(replace(copy, runtime="onnxruntime 0.1, a"))


class NoMemory:
    """A session that has enough for a few tokens only, in onnxruntime's words."""

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input_ids")]

    def run(self, _: None, inputs: dict[str, Any]) -> list[Any]:
        if inputs["input_ids"].size <= 8:
            return [np.zeros((1, 1), np.float32)]
        raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc")


def test_no_memory_marks_a_pair_and_ends_nothing(tiny_bert: Path) -> None:
    """onnxruntime has no error class of its own for it."""
    spec = ScorerSpec(str(tiny_bert), "", max_length=MAX_LENGTH)
    model = OnnxModel(NoMemory(), one_by_one=False)  # type: ignore[arg-type]
    scores = Scorer(PairEncoder(tiny_bert, spec), lambda _: model, spec).score(QUERIES, DOCS)
    assert (scores.status == OUT_OF_MEMORY).all()


def test_a_missing_package_is_refused_without_spark(
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export, "version", lambda name: None if name == "onnx" else "1")

    def no_spark(_: Config) -> None:
        raise RefusedError("no Spark in this test")

    monkeypatch.setattr(preflight, "open_session", no_spark)
    argv = {
        "model.name": tiny_bert, "model.backend": "onnxruntime", "model.max_length": 64,
        "input.path": tmp_path / "in.parquet", "output.path": tmp_path / "out",
    }  # fmt: skip
    code = rerank.main([word for key, value in argv.items() for word in (f"--{key}", str(value))])
    assert code == REFUSED
    assert "needs onnx, not installed here; pip install 'spark-rerank[onnx]'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.precision", "int8"], "precision=int8 is none of model.backend=torch"),
        (
            ["--model.backend", "onnxruntime", "--model.precision", "bf16"],
            "precision=bf16 is none of model.backend=onnxruntime; use auto, fp32, int8",
        ),
        (["--model.backend", "onnxruntime", "--model.device", "cuda"], "scores on CPUs only"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        load_config(arguments)


def test_all_pairs_are_scored(tiny_bert: Path) -> None:
    copy = export.export(inspect_checkpoint(tiny_bert), "fp32")
    scorer = load(copy)
    assert scorer.score([], []).logit.shape == (0,)
    assert (scorer.score(QUERIES[:1], DOCS[:1]).status == OK).all()
