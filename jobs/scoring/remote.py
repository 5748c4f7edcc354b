"""What the driver does for a model that is asked over HTTP."""

import json
import math
import uuid
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.config import RemoteConfig
from jobs.runtime.errors import ErrorCollector, RefusedError
from jobs.scoring.token_lengths import SampledLengths
from udfs.checkpoint import Checkpoint
from udfs.scorers.dialects import DIALECTS, Unit, read_key, request_size
from udfs.spec import RemoteSpec, ScorerSpec

_SAMPLE: Final = "spark.sql.execution.rangeExchange.sampleSizePerPartition"
# Of Cohere: tokens of a document that count as one, and such documents of a search unit.
_CHUNK: Final = 500
_UNIT: Final = 100


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
    given = config.model_dump(exclude={"score", "parameters", "commit", "price_per_unit"})
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
    planned = _work(spec.remote, spread, F.spark_partition_id()) if spec.remote.max_units else 0.0
    return replace(
        spec, remote=replace(spec.remote, requests_per_minute=share, planned=planned)
    ), spread


def estimate_units(
    spec: RemoteSpec, texts: DataFrame, lengths: SampledLengths
) -> tuple[float, Unit]:
    """Return about how many billed units `texts` will need, and of what, asking for nothing.

    Tokens are those of the embedded model's tokenizer. A search unit is a query with 100 documents;
    every 500 tokens of a longer one count as a document.
    """
    unit = DIALECTS[spec.dialect].bills
    if unit == "token":
        return float((lengths.queries + lengths.docs).mean()) * texts.count(), unit
    if unit == "request":
        return _work(spec, texts), unit
    parts = float(np.ceil((lengths.queries + lengths.docs) / _CHUNK).clip(1).mean())
    docs = texts.groupBy("query").agg((F.count(F.lit(1)) * parts).alias("docs"))
    most = min(_UNIT, request_size(spec))
    return float(docs.agg(F.sum(F.ceil(F.col("docs") / most))).collect()[0][0] or 0), unit


def _work(spec: RemoteSpec, texts: DataFrame, *parts: Column) -> float:
    """Return the sum of `udfs.scorers.dialects.work` over parts of `texts`."""
    if DIALECTS[spec.dialect].bills == "token":
        size = F.sum(F.octet_length("query") + F.octet_length("doc"))
        return float(texts.agg(size).collect()[0][0] or 0)
    lists = texts.groupBy(*parts, "query").agg(F.count(F.lit(1)).alias("docs"))
    requests = F.sum(F.ceil(F.col("docs") / request_size(spec)))
    return float(lists.agg(requests).collect()[0][0] or 0)


def _json(value: str) -> str:
    """Return a value of the command line as JSON: `true` and `3` are what they say."""
    try:
        return json.dumps(json.loads(value))
    except ValueError:
        return json.dumps(value)
