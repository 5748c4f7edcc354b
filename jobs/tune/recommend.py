"""Rows -> the setting to use. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jobs.config import TuneConfig
from jobs.tune.rows import Row, make_rows
from jobs.tune.sample import Sample
from jobs.tune.sweep import Measured
from udfs.scores import OK
from udfs.trial import Trial

# Speeds that differ by less are not told apart by a few runs on a machine with other work.
_EQUALLY_FAST: Final = 0.97


def acceptable(row: Row, config: TuneConfig) -> bool:
    """Whether the setting scored every pair, and orders them nearly as the reference does."""
    if row["outcome"] != OK or row["of_batches"]:
        return False
    tau, delta = row["kendall_tau"], row["ndcg_delta"]
    return (tau is None or tau >= config.min_tau) and (delta is None or delta >= -config.max_loss)


def ranked(rows: Sequence[Row], config: TuneConfig) -> list[Row]:
    """The acceptable settings, the fastest first."""
    return sorted(
        (row for row in rows if acceptable(row, config)), key=lambda row: -row["pairs_per_s"]
    )


def recommend(rows: Sequence[Row], config: TuneConfig) -> Row | None:
    """Of the fastest acceptable settings, and those hardly slower, the one that cuts least; of
    those the one that holds the least memory. None where no setting is acceptable.
    """
    found = ranked(rows, config)
    if not found:
        return None
    near = [row for row in found if row["pairs_per_s"] >= _EQUALLY_FAST * found[0]["pairs_per_s"]]
    return min(near, key=lambda row: (-row["max_length"], memory(row), -row["pairs_per_s"]))


def memory(row: Row) -> float:
    """What the setting holds where memory is scarce: on the GPU if there is one [MB]."""
    on_device = row["device_memory_mb"]
    return float(row["memory_mb"] if on_device is None else on_device)


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Settings that no other beats in both speed and agreement, the fastest first."""
    known = [
        row
        for row in rows
        if row["outcome"] == OK and not row["of_batches"] and row["kendall_tau"] is not None
    ]
    front: list[Row] = []
    for row in sorted(known, key=lambda row: (-row["pairs_per_s"], -row["kendall_tau"])):
        if not front or row["kendall_tau"] > front[-1]["kendall_tau"]:
            front.append(row)
    return front


def choose(
    config: TuneConfig, found: Sequence[Measured], reference: Trial, sample: Sample
) -> list[Measured]:
    """The acceptable settings, the recommended one first, then by speed: for the sweep."""
    rows = make_rows(found, reference, sample)
    places = {id(row): at for at, row in enumerate(rows)}
    best = recommend(rows, config)
    order = ranked(rows, config)
    return [found[places[id(row)]] for row in sorted(order, key=lambda row: row is not best)]
