"""Pairs to measure on: the user's own, or made-up ones whose lengths follow a named mix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.runtime.errors import RefusedError
from jobs.scoring.models import embedded_model
from tests.benchmark.config import BenchmarkConfig

GIVEN: Final = "given"
COLUMNS: Final = ("query_id", "query", "doc_id", "doc")
_SIZE: Final = 1_000  # pairs of a made-up mix, unless bench.pairs says otherwise
_CANDIDATES: Final = 100  # per query
_QUERY: Final = 6  # tokens
_SPECIAL: Final = 3  # tokens of a pair that are no text
# Median length of a pair [tokens], and its spread: the standard deviation of the logarithm.
_MIXES: Final = {"short": (40, 0.40), "web": (100, 0.45), "long": (430, 0.449)}
_LONG_SHARE: Final = 0.1  # of the skewed mix


def write_pairs(config: BenchmarkConfig, mix: str, path: Path) -> int:
    """Write the pairs of a mix as one Parquet file of `COLUMNS`; return their number.

    Raises:
        RefusedError: if the given pairs cannot be read, or there are none.
    """
    table = _given(config) if mix == GIVEN else _made_up(config, mix)
    pq.write_table(table, path)
    return int(table.num_rows)


def lengths_of(mix: str, pairs: int, max_length: int) -> NDArray[np.int64]:
    """int64[N]: lengths [tokens] of a made-up mix, the same ones every time."""
    generator = np.random.default_rng(4)
    median, spread = _MIXES["short" if mix == "skewed" else mix]
    lengths = np.exp(generator.normal(np.log(median), spread, pairs))
    if mix == "skewed":
        lengths[generator.random(pairs) < _LONG_SHARE] = max_length
    shortest = _SPECIAL + _QUERY + 1
    return np.maximum(lengths.round().astype(np.int64), shortest)


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
    """Words of the embedded vocabulary that are one token each, in no order that means anything."""
    generator = np.random.default_rng(5)
    words = _words()
    lengths = lengths_of(mix, config.bench.pairs or _SIZE, config.model.max_length)
    rows = range(len(lengths))
    queries = [
        " ".join(generator.choice(words, _QUERY)) for _ in range(0, len(lengths), _CANDIDATES)
    ]
    return pa.table(
        {
            "query_id": [f"q{row // _CANDIDATES}" for row in rows],
            "query": [queries[row // _CANDIDATES] for row in rows],
            "doc_id": [f"d{row}" for row in rows],
            "doc": [
                " ".join(generator.choice(words, length - _SPECIAL - _QUERY))
                for length in lengths.tolist()
            ],
        }
    )


def _words() -> NDArray[np.str_]:
    content = json.loads((embedded_model() / "tokenizer.json").read_text(encoding="utf-8"))
    words = (word for word in content["model"]["vocab"] if word.isascii() and word.isalpha())
    return np.array(sorted(word for word in words if len(word) > 2))
