from __future__ import annotations

import ast
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from udfs import worker
from udfs.devices import TaskSlot
from udfs.scorers.base import PairScorer, StubScorer
from udfs.spec import ScorerSpec

PATH, SLOT = Path("/m"), TaskSlot(cpus=1)


Load = Callable[[Path, ScorerSpec, TaskSlot], PairScorer]


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_loaded", None)


def loader(calls: list[object], what: Callable[[Path, ScorerSpec, TaskSlot], object]) -> Load:
    """A loader that notes what it is called with."""

    def load(path: Path, spec: ScorerSpec, slot: TaskSlot) -> PairScorer:
        calls.append(what(path, spec, slot))
        return StubScorer()

    return load


def test_a_model_is_loaded_once_and_released_for_another() -> None:
    calls: list[object] = []
    load = loader(calls, lambda _path, spec, _slot: spec)
    first, second = (ScorerSpec("/m", digest) for digest in ("1", "2"))
    kept = worker.get_scorer(PATH, first, SLOT, load=load)
    assert worker.get_scorer(PATH, first, SLOT, load=load) is kept
    released = weakref.ref(kept.scorer)
    del kept
    worker.get_scorer(PATH, second, SLOT, load=load)
    assert released() is None
    worker.get_scorer(PATH, first, SLOT, load=load)
    assert calls == [first, second, first]


def test_what_is_released_is_free_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a model on the GPU before stayed with the process."""
    calls: list[object] = []
    load = loader(calls, lambda _path, _spec, slot: slot.gpu)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("free"))
    for gpu in ("0", "1"):
        worker.get_scorer(PATH, ScorerSpec("/m", "1"), TaskSlot(1, gpu), load=load)
    assert calls == ["0", "free", "1"]


def test_a_task_on_another_gpu_gets_the_model_there() -> None:
    """Reused for a task with the other GPU, a worker once went on scoring on the first."""
    calls: list[object] = []
    load = loader(calls, lambda _path, _spec, slot: slot.gpu)
    for gpu in ("0", "0", "1"):
        spec = ScorerSpec("/m", "1")
        assert worker.get_scorer(PATH, spec, TaskSlot(1, gpu), load=load).gpu == gpu
    assert calls == ["0", "1"]


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("udfs.spec", ("torch", "pyspark", "numpy", "transformers")),
        ("udfs.encoding.batching", ("torch", "pyspark", "numpy", "transformers")),
        ("udfs.checkpoint", ("torch", "pyspark", "numpy", "transformers")),
        ("udfs.templates", ("torch", "pyspark", "numpy", "transformers")),
        ("udfs.devices", ("torch", "pyspark", "transformers")),
        ("udfs.scorers.cross_encoder", ("torch", "pyspark", "transformers")),
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


def test_nothing_in_udfs_imports_jobs_and_only_the_udf_imports_pyspark() -> None:
    importers: dict[str, set[str]] = {"jobs": set(), "pyspark": set()}
    for file in (ROOT / "udfs").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                importers.get(name.partition(".")[0], set()).add(file.name)
    assert importers == {"jobs": set(), "pyspark": {"udf.py"}}
