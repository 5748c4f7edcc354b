from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ROOT
from udfs import shared, worker
from udfs.devices import TaskSlot, common_precision, describe
from udfs.scorers.cross_encoder import PairScorer
from udfs.scorers.stub import StubScorer
from udfs.spec import ScorerSpec

SLOT = TaskSlot(cpus=1)


@pytest.fixture(autouse=True)
def forget() -> None:
    worker._loaded.clear()


def test_a_model_is_loaded_once_and_only_the_newest_is_kept() -> None:
    calls: list[ScorerSpec] = []

    def load(path: Path, spec: ScorerSpec, slot: TaskSlot) -> PairScorer:
        calls.append(spec)
        return StubScorer()

    first, second = (ScorerSpec("/m", digest) for digest in ("1", "2"))
    assert worker.get_scorer(first, SLOT, load=load) is worker.get_scorer(first, SLOT, load=load)
    worker.get_scorer(second, SLOT, load=load)
    worker.get_scorer(first, SLOT, load=load)
    assert calls == [first, second, first]


def test_a_worker_has_a_scorer_for_each_gpu_that_spark_gives_it_in_turn() -> None:
    """Reused for a task with the other GPU, a worker once went on scoring on the first."""
    calls: list[str | None] = []

    def load(path: Path, spec: ScorerSpec, slot: TaskSlot) -> PairScorer:
        calls.append(slot.gpu)
        return StubScorer()

    spec, slots = ScorerSpec("/m", "1"), [TaskSlot(1, gpu) for gpu in ("0", "1", "0", "1")]
    found = [worker.get_scorer(spec, slot, load=load).scorer for slot in slots]
    assert calls == ["0", "1"]
    assert found[0] is found[2] and found[1] is found[3] and found[0] is not found[1]
    worker.get_scorer(ScorerSpec("/m", "2"), slots[0], load=load)
    assert len(worker._loaded) == 1


def test_an_archive_is_looked_up_where_spark_unpacked_it() -> None:
    seen: list[Path] = []

    def load(path: Path, spec: ScorerSpec, slot: TaskSlot) -> PairScorer:
        seen.append(path)
        return StubScorer()

    spec = ScorerSpec("archive:model-1", "1")
    worker.get_scorer(spec, SLOT, archive_root=lambda: "/spark/files", load=load)
    assert seen == [Path("/spark/files/model-1")]


@pytest.mark.parametrize("given", ["fp32", None])
def test_a_wish_is_what_a_worker_finds_loaded(
    given: str | None, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = ScorerSpec(str(tiny_bert), "", max_length=64, doc_template="{title}")
    monkeypatch.setenv(shared.WISH, shared.wish(draft, given))  # type: ignore[arg-type]
    monkeypatch.setattr(shared, "may_have_gpu", lambda: False)
    threads = threading.active_count()
    shared.load_wished()
    assert threading.active_count() == threads, "a process with threads must not be forked"
    precision = given or common_precision([describe(draft, SLOT)])
    asked = replace(draft, precision=precision)  # type: ignore[arg-type]
    found = worker.get_scorer(asked, SLOT, load=lambda *_: pytest.fail("loaded again"))
    assert found.seconds > 0
    assert found.scorer.score(["fleas"], ["dogs"]).status.tolist() == ["ok"]


@pytest.mark.parametrize("given", ["", "no JSON", '{"model_path": "/nowhere"}'])
def test_a_wish_that_cannot_be_granted_is_left_to_the_workers(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(shared.WISH, given)
    shared.load_wished()
    assert not worker._loaded


def test_only_what_one_thread_loads_from_a_folder_is_shared() -> None:
    spec = ScorerSpec("/models/m", "")
    assert shared.can_share(spec, 1)
    assert not shared.can_share(spec, 2)
    others = ({"backend": "onnxruntime"}, {"device": "cuda"}, {"model_path": "archive:m"},
              {"trust_remote_code": True})  # fmt: skip
    for other in others:
        assert not shared.can_share(replace(spec, **other), 1)  # type: ignore[arg-type]


def test_no_wish_is_granted_where_there_may_be_a_gpu(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(shared.WISH, shared.wish(ScorerSpec(str(tiny_bert), ""), "fp32"))
    monkeypatch.setattr(shared, "may_have_gpu", lambda: True)
    shared.load_wished()
    assert not worker._loaded


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("udfs.spec", ("torch", "pyspark", "numpy", "transformers")),
        ("udfs.encoding.batching", ("torch", "pyspark", "numpy", "transformers")),
        ("udfs.checkpoint", ("torch", "pyspark", "numpy", "transformers")),
        ("udfs.templates", ("torch", "pyspark", "numpy", "transformers")),
        ("udfs.devices", ("torch", "pyspark", "transformers")),
        ("udfs.lease", ("torch", "pyspark", "transformers")),
        ("udfs.owner", ("torch", "pyspark", "transformers")),
        ("udfs.scorers.cross_encoder", ("torch", "pyspark", "transformers")),
        ("udfs.shared", ("torch", "pyspark", "transformers")),
        ("udfs.udf", ("torch", "transformers", "jobs")),
        ("udfs.forward.onnx", ("torch", "onnxruntime", "transformers")),
        ("jobs.rerank", ("torch", "transformers", "mlflow", "onnx", "onnxruntime")),
        ("jobs.tune", ("torch", "transformers", "mlflow", "onnx", "onnxruntime", "matplotlib")),
    ],
)
def test_importing_a_module_does_not_import(module: str, never: tuple[str, ...]) -> None:
    """The driver stays light, executors never see `jobs`, and importing loads no model."""
    code = f"import sys, {module}; print([m for m in {never!r} if m in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ended.stdout.strip() == "[]"


def test_nothing_in_udfs_imports_jobs() -> None:
    for file in (ROOT / "udfs").rglob("*.py"):
        lines = file.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.startswith(("import jobs", "from jobs"))], file
