"""Publish the results of a run, or keep them beside the published ones, and log the run."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.config import MlflowConfig
from jobs.output.filesystem import local_path
from jobs.output.folder import OutputFolder
from jobs.output.names import METRICS, OPTIONAL, PLOTS, REPORT, RUN, artifacts_of
from jobs.output.tracking.client import TrackingError, replay_command, track
from jobs.runtime.cache import cache
from jobs.runtime.errors import DONE, NOT_TRACKED


def result_files(
    record: Mapping[str, Any],
    document: Mapping[str, Any] | None,
    report: tuple[str, Mapping[str, str]] | None,
) -> dict[str, Any]:
    """Return the contents of the files of jobs.rerank and jobs.evaluate by name, the record last.

    `document` is the evaluation, if there was anything to measure by; `report` its HTML page, and
    its plots as SVG by name.
    """
    files: dict[str, Any] = {}
    if document is not None:
        files[METRICS] = {key: value for key, value in document.items() if key != "examples"}
    if report is not None:
        files[REPORT] = report[0]
        files |= {f"{PLOTS}/{name}.svg": drawing for name, drawing in report[1].items()}
    return {**files, RUN: record}


def publish(
    out: OutputFolder,
    tables: Sequence[str],
    files: Mapping[str, Any],
    *,
    gone: Collection[str] = OPTIONAL,
    hold_back: bool = False,
) -> dict[str, str]:
    """Write files and move them and the staged tables to their places.

    Args:
        out: the output folder.
        tables: what was staged so far.
        files: text or JSON object by name, the record last: it says that a run is whole.
        gone: results of an earlier run, removed unless this run has them too.
        hold_back: leave what is published as it was and keep the results beside it.

    Returns the path of each result by name, without endings.
    """
    for name, content in files.items():
        out.stage_file(name, content)
    names = list(dict.fromkeys([*tables, *(name.partition("/")[0] for name in files)]))
    if hold_back:
        out.keep_unpublished(names)
    else:
        out.publish(names, gone=set(gone) - set(names))
    return {Path(name).stem: out.place(name) for name in names}


def track_run(
    config: MlflowConfig, out: OutputFolder, record: Mapping[str, Any], name: str = RUN
) -> int:
    """Log the run, after everything is written; return an exit code.

    A server that is down costs time, not data. `name` is that of the record's file.
    """
    if not config.enabled:
        return DONE
    run_json = local = local_path(out.place(name))
    if run_json is None:  # a copy on this machine, which can be logged later, too
        folder = cache() / "runs" / out.run_id
        folder.mkdir(parents=True, exist_ok=True)
        for result in (name, *artifacts_of(record)):
            out.copy_to_local(result, folder / result)
        run_json = folder / name
    try:
        run_id = track(run_json, config)
    except TrackingError as error:
        sys.stderr.write(
            f"the data is complete, but MLflow could not be reached: {error}\n"
            f"log this run later with: {replay_command(str(run_json), config.tracking_uri)}\n"
        )
        return NOT_TRACKED
    if local is None:
        out.update_json(name, {**record, "mlflow_run_id": run_id})
    sys.stdout.write(f"{'mlflow':<10} run {run_id}\n")
    return DONE
