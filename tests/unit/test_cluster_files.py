"""The settings files for clusters: each key has its reason, none is one that the job refuses."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.runtime.session import _refuse_settings
from tests.conftest import ROOT

CLUSTER = ROOT / "conf" / "cluster"
NEEDED = {
    "spark.speculation": "false",
    "spark.python.worker.reuse": "true",
}


def read(name: str) -> dict[str, str]:
    settings, before = {}, ""
    for line in (CLUSTER / f"{name}.conf").read_text().splitlines():
        if line and not line.startswith("#"):
            key, value = line.split()
            assert key not in settings, f"{key} is there twice"
            assert before.startswith("# "), f"{key} has no reason above it"
            settings[key] = value
        before = line
    return settings


@pytest.mark.parametrize("name", ["standalone", "yarn", "kubernetes"])
def test_two_tasks_share_the_gpu_and_all_cores(name: str) -> None:
    settings = read(name)
    assert settings.items() >= NEEDED.items()
    assert settings["spark.executor.resource.gpu.amount"] == "1"
    share = float(settings["spark.task.resource.gpu.amount"])
    assert share == 0.5
    assert int(settings["spark.executor.cores"]) == 2 * int(settings["spark.task.cpus"])
    _refuse_settings({**settings, "spark.master": "yarn"})


def test_the_databricks_bundle_asks_for_a_classic_session() -> None:
    content = yaml.safe_load((CLUSTER / "databricks.yaml").read_text())
    job = content["resources"]["jobs"]["rerank"]
    (cluster,) = job["job_clusters"]
    assert cluster["new_cluster"]["data_security_mode"] == "SINGLE_USER"
    assert cluster["new_cluster"]["spark_conf"].items() >= NEEDED.items()
    (task,) = job["tasks"]
    assert (CLUSTER / task["spark_python_task"]["python_file"]).resolve().is_file()


def test_the_image_copies_what_there_is() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = [
        line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line
    ]
    assert all((ROOT / name).exists() for names in copied for name in names)
    assert any("pip install" in line and "constraints.txt" in line for line in lines)


def test_the_discovery_script_prints_what_spark_reads(tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    fake.chmod(0o755)
    said = subprocess.run(
        [CLUSTER / "gpus.sh"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert yaml.safe_load(said) == {"name": "gpu", "addresses": ["0", "1"]}


def test_the_archive_holds_what_executors_import() -> None:
    made = next(line for line in (ROOT / "Makefile").read_text().splitlines()
                if line.startswith("EXECUTOR :="))  # fmt: skip
    # numpy comes with pandas, tokenizers with transformers; onnxruntime is an extra.
    named = (name.replace("-", "_") for name in made.split()[2:])
    there = {*named, "pyspark", "numpy", "tokenizers", "onnxruntime", "udfs", "jobs"}
    files = [*(ROOT / "udfs").rglob("*.py"), ROOT / "jobs" / "evaluation" / "measures.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            lacking = {name.partition(".")[0] for name in names} - there - sys.stdlib_module_names
            assert not lacking, f"{file.name} imports {lacking}"


def test_udfs_are_where_the_archive_is_made_for() -> None:
    """Whoever writes a UDF in another module has to think of the archive."""
    marks = ("pandas_udf(", "mapInPandas(", "applyInPandas(", "arrow_udf(", "mapInArrow(")
    found = {
        file.relative_to(ROOT / "jobs").as_posix()
        for file in (ROOT / "jobs").rglob("*.py")
        if any(mark in file.read_text(encoding="utf-8") for mark in marks)
    }
    # One hands over a function of `evaluation/measures.py`, the other one of `udfs`.
    assert found == {"evaluation/run.py", "scoring/stage.py"}
