"""The end of a run: what it found is written, shown, logged, and turned into an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.config import Config
from jobs.evaluation.result import PER_QUERY
from jobs.output.folder import OutputFolder
from jobs.output.tracking.client import Client, TrackingError, replay_command
from jobs.output.tracking.runs import artifacts_of
from jobs.runtime.cache import cache
from jobs.runtime.errors import DONE, GATE_NOT_PASSED, NOT_TRACKED

METRICS = "metrics.json"
REPORT = "report.html"
PLOTS = "plots"
RUN = "run.json"
TUNING = "tune.json"
TUNING_PAGE = "tune.html"
RECOMMENDED = "recommended.yaml"


def publish(
    out: OutputFolder,
    tables: Sequence[str],
    record: Mapping[str, Any],
    document: Mapping[str, Any] | None,
    report: tuple[str, Mapping[str, str]] | None = None,
) -> dict[str, str]:
    """Write metrics, report and record, and move them and the tables to their places.

    The record is named last: it says that a run is whole.

    Args:
        out: the output folder.
        tables: what was staged so far.
        record: content of run.json.
        document: the evaluation, None where there was nothing to measure by. Measures of an
            earlier run are removed then.
        report: its HTML page, and its plots as SVG by name.

    Returns:
        Path by name, without endings.
    """
    files = [RUN]
    if document is not None:
        kept = {key: value for key, value in document.items() if key != "examples"}
        out.stage_json(METRICS, kept)
        files = [METRICS, RUN]
    if report is not None:
        page, plots = report
        out.stage_text(REPORT, page)
        for name, drawing in plots.items():
            out.stage_text(f"{PLOTS}/{name}.svg", drawing)
        files = [REPORT, *([PLOTS] if plots else []), *files]
    out.stage_json(RUN, record)
    names = [*tables, *files]
    out.publish(names, gone={PER_QUERY, METRICS, REPORT, PLOTS} - set(names))
    return {Path(name).stem: out.place(name) for name in names}


def publish_tuning(out: OutputFolder, document: Mapping[str, Any], page: str) -> dict[str, str]:
    """Write what jobs.tune found and move it to its place: the record is named last.

    Returns:
        Path by name.
    """
    from jobs.tune.document import recommended_yaml

    files = {"page": TUNING_PAGE, "record": TUNING}
    if document["recommended"]:
        files = {"recommended": RECOMMENDED, **files}
        out.stage_text(RECOMMENDED, recommended_yaml(document))
    out.stage_text(TUNING_PAGE, page)
    out.stage_json(TUNING, document)
    out.publish(list(files.values()), gone={RECOMMENDED} - set(files.values()))
    return {name: out.place(file) for name, file in files.items()}


def exit_code(document: Mapping[str, Any] | None, tracked: int) -> int:
    """A gate that was not passed outweighs a server that was not reached."""
    gate = (document or {}).get("gate")
    return GATE_NOT_PASSED if gate and not gate["passed"] else tracked


def mlflow_client(config: Config) -> Client:
    """What `track_run` needs."""
    return Client(config.mlflow.tracking_uri, config.mlflow.timeout)


def track_run(
    client: Client,
    config: Config,
    out: OutputFolder,
    record: Mapping[str, Any],
    name: str = RUN,
) -> int:
    """Log the run, after everything is written. A server that is down costs time, not data.

    Args:
        client: asks MLflow.
        config: `mlflow`.
        out: the output folder.
        record: content of the record.
        name: of the record's file.

    Returns:
        An exit code.
    """
    if not config.mlflow.enabled:
        return DONE
    run_json, is_local = _local_record(out, name, artifacts_of(record))
    try:
        run_id = client.ask(str(run_json))
    except TrackingError as error:
        again = replay_command(str(run_json), config.mlflow.tracking_uri)
        sys.stderr.write(
            f"the data is complete, but MLflow could not be reached: {error}\n"
            f"log this run later with: {again}\n"
        )
        return NOT_TRACKED
    if not is_local:
        out.update_json(name, {**record, "mlflow_run_id": run_id})
    sys.stdout.write(f"{'mlflow':<10} run {run_id}\n")
    return DONE


def _local_record(out: OutputFolder, name: str, artifacts: Sequence[str]) -> tuple[Path, bool]:
    """The record as a file of this machine: the written one, or a copy of a remote one."""
    place = out.place(name)
    if place.startswith("file:"):
        return Path(place.removeprefix("file://").removeprefix("file:")), True
    folder = cache() / "runs" / out.run_id
    folder.mkdir(parents=True, exist_ok=True)
    for found in (name, *artifacts):
        if out.has(found):
            out.copy_to_local(found, folder / found)
    return folder / name, False
