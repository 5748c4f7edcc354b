"""Jobs in processes of their own, as what is tested here kills them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from jobs.runtime.errors import DONE
from tests.conftest import ROOT
from tests.faults import oracle
from tests.faults.daemon import Faults
from tests.faults.launch import Driver
from tests.sample import SAMPLE

KILLED = -9
_LIMIT = 280  # s for one run


def write_input(file: Path) -> int:
    """The embedded sample with rows to reject and to collapse; returns the number of rows."""
    lines = SAMPLE.read_text("utf-8").splitlines()
    bad = [json.dumps({**json.loads(line), "doc_id": "blank", "body": " "}) for line in lines[:2]]
    file.write_text("\n".join([*lines, *bad, *lines[:3]]) + "\n", "utf-8")
    return len(lines) + 5


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str


class Watched(subprocess.Popen[bytes]):
    """A run, and the watcher of its output folder."""

    watcher: oracle.Watcher


@dataclass(frozen=True)
class Job:
    """`jobs.rerank` on one input, in eight small tasks of a few batches each.

    The model is the stub unless `model.backend` says torch: what can be killed is all but the
    model, and its scores are the same in any batch.

    Attributes:
        folder: for configuration files, logs and Spark's own files.
        keys: configuration by `section.key`.
    """

    folder: Path
    keys: Mapping[str, object] = field(default_factory=dict)

    def start(
        self,
        out: Path,
        faults: Faults | None = None,
        driver: Driver | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        **keys: object,
    ) -> Watched:
        """Start a run; keyword arguments are further keys, `__` for the dot."""
        given = {
            "model.max_length": 64, "model.precision": "fp32", "input.label": "",
            "input.doc_template": "{title}\n{body}", "input.max_reject_rate": 1.0,
            "batching.partitions": 8, "batching.max_tokens": 512, "mlflow.enabled": False,
            "batching.window": 8, "model.backend": "stub", "spark.master": "local[2]",
            **self.keys, "output.path": str(out),
        }  # fmt: skip
        given |= {key.replace("__", "."): value for key, value in keys.items()}
        faults = replace(faults or Faults(), torch=given["model.backend"] == "torch")
        given["spark.settings"] = {
            "spark.local.dir": str(self.folder / "local"),
            "spark.sql.execution.arrow.maxRecordsPerBatch": "8",  # the stub's batches
            **faults.settings(),
            **dict(given.get("spark.settings", {})),  # type: ignore[call-overload]
        }
        sections: dict[str, dict[str, object]] = {}
        for key, value in given.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = (
                str(value) if isinstance(value, Path) else value
            )
        config = self.folder / f"{out.name}.yaml"
        config.write_text(yaml.safe_dump(sections))
        words = [json.dumps(asdict(driver or Driver())), "jobs.rerank", "--config", str(config)]
        # Files and not pipes: workers of a killed driver may hold a pipe open for a while.
        with self._log(out, "out").open("wb") as said, self._log(out, "err").open("wb") as errors:
            process = Watched(
                [sys.executable, "-m", "tests.faults.launch", *words], cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
                stdout=said, stderr=errors,
            )  # fmt: skip
        process.watcher = oracle.Watcher(out)
        return process

    def end(self, out: Path, process: Watched) -> Ended:
        """Wait for a run that was started, and see that OUT was whole all the while."""
        try:
            code = process.wait(_LIMIT)
        finally:
            process.kill()
            process.watcher.stop()
        said, errors = (self._log(out, name).read_text("utf-8") for name in ("out", "err"))
        return Ended(code, said, errors)

    def run(self, out: Path, *arguments: object, **keys: object) -> Ended:
        """Start a run and wait for its end."""
        return self.end(out, self.start(out, *arguments, **keys))  # type: ignore[arg-type]

    def finish(self, out: Path, *arguments: object, **keys: object) -> Ended:
        """A run that has to end well."""
        ended = self.run(out, *arguments, **keys)
        assert ended.code == DONE, ended.err[-4000:]
        return ended

    def _log(self, out: Path, name: str) -> Path:
        return self.folder / f"{out.name}.{name}"


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The input's file and its number of rows."""
    file = tmp_path_factory.mktemp("input") / "pairs.jsonl"
    return file, write_input(file)


@pytest.fixture(scope="session")
def _undisturbed(
    tiny_bert: Path, pairs: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Output folders of runs without faults, made when they are first asked for."""

    @cache
    def make(backend: str) -> Path:
        folder = tmp_path_factory.mktemp(f"undisturbed-{backend}")
        keys = {"model.name": tiny_bert, "model.backend": backend, "input.path": pairs[0]}
        Job(folder, keys).finish(folder / "out")
        return folder / "out"

    return make


@pytest.fixture
def undisturbed(_undisturbed: Callable[[str], Path]) -> Path:
    """The output folder of a run without faults."""
    return _undisturbed("stub")


@pytest.fixture
def undisturbed_torch(_undisturbed: Callable[[str], Path]) -> Path:
    """The same with a real model, a tiny one."""
    return _undisturbed("torch")


@pytest.fixture
def job(tiny_bert: Path, pairs: tuple[Path, int], tmp_path: Path) -> Job:
    """The same job, to be disturbed."""
    return Job(tmp_path, {"model.name": tiny_bert, "input.path": pairs[0]})


@pytest.fixture
def torch_job(job: Job) -> Job:
    """The same with a real model, a tiny one."""
    return replace(job, keys={**job.keys, "model.backend": "torch"})
