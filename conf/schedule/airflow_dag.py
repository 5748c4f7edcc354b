"""A night of spark-rerank in Airflow: copy this file to the DAG folder. Run with Airflow 2.10.

    rerank -> evaluate -> relabel -> track

`rerank` ranks the day's rows of the log. `evaluate` compares them with the last night that passed.
`relabel` writes the day where others read it: no pair is scored again, and a day whose gate failed
never gets there. `track` repeats the logging to MLflow alone, where that was out of reach.

The Airflow variable `spark_rerank` (JSON) replaces any of `DEFAULTS`.
"""

from __future__ import annotations

import shlex
import subprocess
from datetime import datetime, timedelta

from airflow.exceptions import AirflowException, AirflowFailException
from airflow.timetables.interval import CronDataIntervalTimetable

try:
    from airflow.sdk import Variable, dag, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task
    from airflow.models import Variable

DEFAULTS = {
    "home": "/opt/spark-rerank",  # where the commands start
    # On a cluster: spark-submit --properties-file conf/cluster/yarn.conf ... jobs/rerank.py
    "rerank": "python -m jobs.rerank --config conf/gpu.yaml",
    "evaluate": "python -m jobs.evaluate --config conf/gpu.yaml",
    "track": "python -m jobs.output.tracking",
    "log": "/data/log",  # a folder date=YYYY-MM-DD for each day
    "nights": "/data/nights",
    "verdicts": "/data/verdicts",
    "labels": "/data/labels",
    "store": "/data/scores",
    "qrels": "/data/qrels.txt",
    "experiment": "nightly",
    "gate": "nDCG@10 vs baseline >= -0.005 (significant)",
}
NOT_TRACKED = 5
# Configuration or input refused, too many rejects, gate not passed: they come again at every try.
FINAL = (2, 3, 4)


def settings() -> dict[str, str]:
    """Return the defaults, and the variable's values in place of them."""
    return {**DEFAULTS, **Variable.get("spark_rerank", {}, deserialize_json=True)}


def run(command: str, *arguments: str) -> int:
    """Run a command to its end, its output in the task's log, and return the exit code, 0 or 5.

    Raises:
        AirflowFailException: a failure that is not tried again.
        AirflowException: one that is; the next try goes on where this one was stopped.
    """
    chosen = settings()
    words = [*shlex.split(chosen[command]), *arguments]
    code = subprocess.run(words, cwd=chosen["home"], check=False).returncode
    if code in FINAL:
        raise AirflowFailException(f"{command} ended with exit code {code}; see its output above")
    if code not in (0, NOT_TRACKED):
        raise AirflowException(f"{command} ended with exit code {code}")
    return code


@dag(
    # With a plain expression `ds` would be yesterday in Airflow 2, and today in 3.
    schedule=CronDataIntervalTimetable("0 3 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,  # a night is compared with one before it
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
)
def spark_rerank() -> None:
    """Rerank, judge and relabel one day of a retrieval log."""

    def rank_to(folder: str, day: str | None) -> str:
        """Rank the day into a folder; return the record to log again, empty where it was logged."""
        chosen = settings()
        out = f"{chosen[folder]}/date={day}"
        code = run(
            "rerank", "--input.path", f"{chosen['log']}/date={day}", "--output.path", out,
            "--store.path", chosen["store"],
        )  # fmt: skip
        return f"{out}/run.json" if code == NOT_TRACKED else ""

    @task
    def rerank(ds: str | None = None) -> str:
        return rank_to("nights", ds)

    @task
    def evaluate(ds: str | None = None) -> str:
        chosen = settings()
        out = f"{chosen['verdicts']}/date={ds}"
        code = run(
            "evaluate", "--ranked.path", f"{chosen['nights']}/date={ds}/ranked",
            "--output.path", out, "--evaluation.qrels", chosen["qrels"],
            "--evaluation.gate", chosen["gate"], "--mlflow.experiment", chosen["experiment"],
            "--evaluation.baseline", f"mlflow:{chosen['experiment']}",
        )  # fmt: skip
        return f"{out}/run.json" if code == NOT_TRACKED else ""

    @task
    def relabel(ds: str | None = None) -> str:
        return rank_to("labels", ds)

    @task(retries=20, retry_delay=timedelta(minutes=30))
    def track(records: list[str]) -> None:
        for record in filter(None, records):
            if run("track", record) == NOT_TRACKED:
                raise AirflowException("MLflow is out of reach")

    ranked, judged, labelled = rerank(), evaluate(), relabel()
    ranked >> judged >> labelled
    track([ranked, judged, labelled])


spark_rerank()
