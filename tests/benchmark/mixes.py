"""Pairs to measure on: the user's own, or made-up ones whose lengths follow a named mix."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.runtime.errors import RefusedError
from tests.benchmark.config import BenchmarkConfig
from tests.benchmark.texts import CANDIDATES, lengths_of, made_up, one_token_words

GIVEN: Final = "given"
COLUMNS: Final = ("query_id", "query", "doc_id", "doc")
_SIZE: Final = 1_000  # pairs of a made-up mix, unless bench.pairs says otherwise


def write_pairs(config: BenchmarkConfig, mix: str, path: Path) -> int:
    """Write the pairs of a mix as one Parquet file of `COLUMNS`; return their number.

    Raises:
        RefusedError: if the given pairs cannot be read, or there are none.
    """
    table = _given(config) if mix == GIVEN else _made_up(config, mix)
    pq.write_table(table, path)
    return int(table.num_rows)


def _given(config: BenchmarkConfig) -> pa.Table:
    source, names = config.input.path, config.input
    if not source:
        raise RefusedError("bench.mixes=given needs input.path; give it, or name made-up mixes")
    columns = [names.query_id, names.query, names.doc_id, names.doc]
    try:
        table = pq.read_table(source, columns=columns).rename_columns(list(COLUMNS))
    except (OSError, ValueError) as error:
        kind = type(error).__name__
        raise RefusedError(
            f"input.path={source} cannot be measured on ({kind}); name a Parquet table that has "
            f"the columns {', '.join(columns)}"
        ) from None
    if not table.num_rows:
        raise RefusedError(f"input.path={source} has no rows; name a table of pairs")
    count = config.bench.pairs
    if count and count < table.num_rows:
        chosen = np.random.default_rng(4).choice(table.num_rows, count, replace=False)
        table = table.take(pa.array(np.sort(chosen)))
    return table


def _made_up(config: BenchmarkConfig, mix: str) -> pa.Table:
    lengths = lengths_of(mix, config.bench.pairs or _SIZE, config.model.max_length)
    queries, docs = made_up(lengths, one_token_words())
    rows = range(len(lengths))
    return pa.table(
        {
            "query_id": [f"q{row // CANDIDATES}" for row in rows],
            "query": queries,
            "doc_id": [f"d{row}" for row in rows],
            "doc": docs,
        }
    )
