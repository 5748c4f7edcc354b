"""The settings files for clusters: each key has its reason, none is one that the job refuses."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys

import pytest
import yaml

from jobs.config import Config
from jobs.runtime.cli import load_config
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
def test_only_scoring_tasks_are_given_the_gpu(name: str) -> None:
    """`scoring_profile` shares out GPUs and cores where the settings leave that to it."""
    settings = read(name)
    assert settings.items() >= NEEDED.items()
    assert settings["spark.executor.resource.gpu.amount"] == "1"
    assert int(settings["spark.executor.cores"]) % 2 == 0
    assert not {"spark.task.resource.gpu.amount", "spark.task.cpus"} & settings.keys()
    _refuse_settings({**settings, "spark.master": "yarn"})


def test_the_databricks_bundle_is_a_night_in_classic_sessions() -> None:
    content = yaml.safe_load((CLUSTER / "databricks.yaml").read_text())
    job = content["resources"]["jobs"]["nightly"]
    (cluster,) = job["job_clusters"]
    assert cluster["new_cluster"]["data_security_mode"] == "SINGLE_USER"
    assert cluster["new_cluster"]["spark_conf"].items() >= NEEDED.items()
    assert [task["task_key"] for task in job["tasks"]] == ["rerank", "evaluate", "relabel"]
    for task in job["tasks"]:
        script = (CLUSTER / task["spark_python_task"]["python_file"]).resolve()
        required = importlib.import_module(f"jobs.{script.stem}").COMMAND.require
        words = [
            word.replace("/Workspace/PATH", str(ROOT)).replace("{{job.parameters.day}}", "1")
            for word in task["spark_python_task"]["parameters"]
        ]
        assert load_config(words, required).output.path.endswith("/date=1")


def test_the_operators_application_is_that_of_kubernetes_conf() -> None:
    application, nightly = yaml.safe_load((CLUSTER / "spark-operator.yaml").read_text())["items"]
    spec, settings = application["spec"], read("kubernetes")
    assert nightly["spec"]["template"] == spec
    assert spec["sparkConf"].items() <= settings.items()
    assert spec["executor"]["cores"] == int(settings["spark.executor.cores"])
    assert spec["executor"]["memoryOverhead"] == settings["spark.executor.memoryOverhead"]
    pinned = (ROOT / "conf" / "constraints.txt").read_text().splitlines()
    assert f"pyspark=={spec['sparkVersion']}" in pinned
    image = (CLUSTER / "Dockerfile").read_text()
    assert f"apache/spark:{spec['sparkVersion']}-" in image
    script = spec["mainApplicationFile"].removeprefix("local:///opt/spark-rerank/")
    assert (ROOT / script).is_file()


def test_the_airflow_dag_names_keys_and_commands_that_there_are() -> None:
    tree = ast.parse((ROOT / "conf" / "schedule" / "airflow_dag.py").read_text())
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    keys = {text[2:] for text in texts if isinstance(text, str) and text.startswith("--")}
    assert len(keys) > 5
    for section, _, key in (key.partition(".") for key in keys):
        assert key in Config.model_fields[section].annotation.model_fields, f"{section}.{key}"
    modules = re.findall(r"python -m (\S+)", " ".join(t for t in texts if isinstance(t, str)))
    assert len(modules) == 3
    assert all(importlib.util.find_spec(module) for module in modules)


def test_the_image_copies_what_there_is() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = [
        line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line
    ]
    assert all((ROOT / name).exists() for names in copied for name in names)
    assert any("pip install" in line and "constraints.txt" in line for line in lines)


def test_the_archive_holds_what_executors_import() -> None:
    made = next(line for line in (ROOT / "Makefile").read_text().splitlines()
                if line.startswith("EXECUTOR :="))  # fmt: skip
    # numpy comes with pandas, tokenizers with transformers, triton with torch.
    named = (name.replace("-", "_") for name in made.split()[2:])
    there = {*named, "pyspark", "numpy", "tokenizers", "triton", "onnxruntime", "httpx"}
    there |= {"udfs", "jobs"}
    on_executors = [ROOT / "jobs" / name for name in ("evaluation/measures.py", "export/choose.py")]
    files = [*(ROOT / "udfs").rglob("*.py"), *on_executors]
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
    # They hand over functions of `evaluation/measures.py`, `export/choose.py` and `udfs`.
    assert found == {"evaluation/run.py", "export/mining.py", "scoring/fill.py"}
