"""The schedules of conf/ as their schedulers run them: a night that passes, and a failed gate.

`AIRFLOW` names the program of an Airflow; tox makes an environment with one (`make matrix`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from jobs.runtime.errors import DONE, GATE_NOT_PASSED
from tests.conftest import ROOT, SENTENCES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6000)]

SCHEDULES = ROOT / "conf" / "schedule"
DAYS = ("2026-03-01", "2026-03-02")
PASSES, FAILS = "nDCG@10 >= 0", "nDCG@10 >= 0.9999"


@pytest.fixture
def commands(tiny_bert: Path, tmp_path: Path) -> dict[str, str]:
    """Two days of a log, one relevant document of five a query; the commands by name."""
    rows = [
        {"query_id": f"q{q}", "query": SENTENCES[q], "doc_id": f"d{q}-{d}",
         "doc": f"{SENTENCES[(q + d) % len(SENTENCES)]} {d}"}
        for q in range(8) for d in range(5)
    ]  # fmt: skip
    for day in DAYS:
        folder = tmp_path / "log" / f"date={day}"
        folder.mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(folder / "part.parquet")
    qrels = [f"q{q} 0 d{q}-{d} {int(d == q % 5)}\n" for q in range(8) for d in range(5)]
    (tmp_path / "qrels.txt").write_text("".join(qrels))
    python = f"{sys.executable} -m"
    spark = "--spark.master local[2] --mlflow.timeout 120"
    return {
        "rerank": f"{python} jobs.rerank --model.name {tiny_bert} --model.max_length 64 {spark} "
        "--model.precision fp32 --mlflow.enabled false",
        "evaluate": f"{python} jobs.evaluate {spark}",
        "track": f"{python} jobs.output.tracking",
    }


def places(tmp_path: Path) -> dict[str, str]:
    """Environment of all commands."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}  # fmt: skip


def published(tmp_path: Path, day: str) -> dict[str, bool]:
    names = ("nights", "verdicts", "labels")
    return {name: (tmp_path / name / f"date={day}" / "run.json").exists() for name in names}


def test_a_night_from_cron(commands: dict[str, str], tmp_path: Path) -> None:
    given = {"DATA": str(tmp_path), **{name.upper(): words for name, words in commands.items()}}

    def night(day: str, gate: str) -> int:
        script = ["sh", str(SCHEDULES / "nightly.sh"), day]
        env = {**places(tmp_path), **given, "GATE": gate}
        return subprocess.run(script, cwd=ROOT, env=env, check=False, timeout=3000).returncode

    assert night(DAYS[0], PASSES) == DONE
    assert published(tmp_path, DAYS[0]) == {"nights": True, "verdicts": True, "labels": True}
    labels = json.loads((tmp_path / "labels" / f"date={DAYS[0]}" / "run.json").read_text())
    assert labels["counts"]["scored"] == 0 and labels["counts"]["ranked"] == 40
    assert night(DAYS[1], FAILS) == GATE_NOT_PASSED
    assert published(tmp_path, DAYS[1]) == {"nights": True, "verdicts": True, "labels": False}


@pytest.mark.skipif("AIRFLOW" not in os.environ, reason="AIRFLOW names no program")
def test_a_night_in_airflow(commands: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "airflow"
    chosen = {
        **commands, "home": str(ROOT), "qrels": str(tmp_path / "qrels.txt"),
        "store": str(tmp_path / "scores"),
        **{name: str(tmp_path / name) for name in ("log", "nights", "verdicts", "labels")},
    }  # fmt: skip
    env = {
        **places(tmp_path), "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(SCHEDULES),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
    }  # fmt: skip

    def airflow(*words: str, gate: str = PASSES) -> subprocess.CompletedProcess[str]:
        variable = {"AIRFLOW_VAR_SPARK_RERANK": json.dumps({**chosen, "gate": gate})}
        return subprocess.run(
            [os.environ["AIRFLOW"], *words], env={**env, **variable}, capture_output=True,
            text=True, timeout=3000, check=False,
        )  # fmt: skip

    def states(day: str, gate: str) -> dict[str, str]:
        """Run a day; return what Airflow shows of its tasks."""
        said = airflow("dags", "test", "spark_rerank", f"{day}T03:00:00+00:00", gate=gate)
        words = ("tasks", "states-for-dag-run", "spark_rerank", f"{day}T03:00:00+00:00")
        shown = airflow(*words, "--output", "json").stdout
        assert "[" in shown, said.stdout[-2000:] + said.stderr[-2000:]
        return {task["task_id"]: task["state"] for task in json.loads(shown[shown.index("[{") :])}

    assert airflow("db", "migrate").returncode == 0
    errors = airflow("dags", "list-import-errors", "--output", "json").stdout
    assert "airflow_dag.py" not in errors, errors
    done = dict.fromkeys(("rerank", "evaluate", "relabel", "track"), "success")
    assert states(DAYS[0], PASSES) == done
    assert all(published(tmp_path, DAYS[0]).values())
    assert states(DAYS[1], FAILS) == {
        "rerank": "success", "evaluate": "failed", "relabel": "upstream_failed",
        "track": "upstream_failed",
    }  # fmt: skip
    assert published(tmp_path, DAYS[1]) == {"nights": True, "verdicts": True, "labels": False}
