"""Names of everything in an output folder."""

from collections.abc import Mapping
from typing import Any, Final

# Tables.
RANKED: Final = "ranked"
REJECTS: Final = "rejects"
PER_QUERY: Final = "per_query"
DRIFT: Final = "drift"
TRAINING: Final = "training"  # of jobs.export
# Files of jobs.rerank and jobs.evaluate. The record says that what is beside it is whole.
METRICS: Final = "metrics.json"
REPORT: Final = "report.html"
PLOTS: Final = "plots"
RUN: Final = "run.json"
# Files of jobs.tune.
TUNING: Final = "tune.json"
TUNING_PAGE: Final = "tune.html"
RECOMMENDED: Final = "recommended.yaml"

#: The score store, unless `store.path` is set.
SCORES: Final = "scores"
#: UNPUBLISHED/RUN_ID/ holds the results of the last run that was not published.
UNPUBLISHED: Final = "unpublished"
# Names with an underscore or a dot are invisible to Spark's readers of the folder above them.
WORK: Final = "_work"  # WORK/RUN_ID/ holds what a run is building
SWAP: Final = "_swap.json"  # the run that is publishing, and what
LOCK: Final = ".lock"  # held by that run

#: Tables that `output.partition_by` splits.
PARTITIONED: Final = (RANKED, REJECTS)
#: The partitions of the input, in the workspace.
PARTITIONS: Final = "partitions"
#: Results that not every run has; those of the former run go.
OPTIONAL: Final = frozenset({PER_QUERY, DRIFT, METRICS, REPORT, PLOTS})
#: What a run replaces or removes, with all it holds.
REPLACED: Final = frozenset(
    {
        RANKED,
        REJECTS,
        RUN,
        TUNING,
        TUNING_PAGE,
        RECOMMENDED,
        TRAINING,
        UNPUBLISHED,
        WORK,
        SWAP,
        LOCK,
    }
    | OPTIONAL
)


def artifacts_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the results beside a record that are logged with it."""
    if record.get("kind") == "tune":
        return TUNING_PAGE, RECOMMENDED
    return METRICS, REPORT, PLOTS, PER_QUERY, DRIFT
