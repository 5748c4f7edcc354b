"""What the driver does for a model that is asked over HTTP."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.config import RemoteConfig
from jobs.runtime.errors import ErrorCollector, RefusedError
from udfs.checkpoint import Checkpoint
from udfs.scorers.dialects import DIALECTS, read_key
from udfs.spec import RemoteSpec, ScorerSpec

_SAMPLE: Final = "spark.sql.execution.rangeExchange.sampleSizePerPartition"


def remote_model(config: RemoteConfig) -> Checkpoint:
    """Return what stands for a model that no folder holds; refuse one that cannot be asked."""
    errors = ErrorCollector()
    if find_spec("httpx") is None:
        errors.add("model.backend=remote needs httpx; pip install 'spark-rerank[remote]'")
    try:
        read_key(config.key_env, config.key_file)
    except ValueError as error:
        errors.add(str(error))
    errors.raise_if_any()
    return Checkpoint(Path(), "", str(config.dialect), None, 0)


def remote_spec(config: RemoteConfig) -> ScorerSpec:
    """Return what executors have to know."""
    assert config.dialect is not None  # or it was refused
    given = config.model_dump(exclude={"score", "parameters", "commit"})
    parameters = tuple(sorted((name, _json(value)) for name, value in config.parameters.items()))
    score = config.score or DIALECTS[config.dialect].gives or "logit"
    # A server that one run gave up is asked again by the next, maybe in the same process.
    remote = RemoteSpec(**given, score=score, parameters=parameters, run=uuid.uuid4().hex)
    return ScorerSpec("", "", backend="remote", window=config.commit, remote=remote)


def share_out(
    spec: ScorerSpec, texts: DataFrame, count: int, slots: int
) -> tuple[ScorerSpec, DataFrame]:
    """Return the spec of one of the tasks that run at once, and `texts` in tasks.

    A task has `spec.window` pairs at most, and a query's are side by side: Spark finds the bounds
    of ranges from a sample, which holds all pairs up to its limit of a million.
    """
    assert spec.remote is not None
    if texts.sparkSession.conf.get("spark.speculation", "false") == "true":
        raise RefusedError("spark.speculation=true would pay for pairs twice; set it to false")
    tasks = math.ceil(count / spec.window)
    share = spec.remote.requests_per_minute / min(slots, tasks)
    order = (F.xxhash64("query"), F.xxhash64("pair_key"))
    texts.sparkSession.conf.set(_SAMPLE, str(spec.window))
    spread = texts.repartitionByRange(tasks, *order).sortWithinPartitions(*order)
    return replace(spec, remote=replace(spec.remote, requests_per_minute=share)), spread


def _json(value: str) -> str:
    """Return a value of the command line as JSON: `true` and `3` are what they say."""
    try:
        return json.dumps(json.loads(value))
    except ValueError:
        return json.dumps(value)
