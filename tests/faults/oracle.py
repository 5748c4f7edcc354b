"""Two oracles of all faults.

`check`: whatever happened, the result is that of an undisturbed run. It reads what was written,
with pyarrow, and asks the job's own record only where that is the claim.

`Watcher`: at any moment the published folder is a whole earlier result or a whole new one.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

KEYS = ["query_id", "doc_id"]
_LOOK = 0.02  # between two looks at a folder [s]
TOLERANCE = 1e-4  # logits in fp32, when pairs met others in their batches


@dataclass(frozen=True)
class Cost:
    """What the faults have cost.

    Attributes:
        scored_again: pairs given to the model more often than once.
        stored_again: scores written more often than once.
    """

    scored_again: int
    stored_again: int


def check(
    out: Path,
    undisturbed: Path,
    *,
    rows: int,
    tally: Path | None = None,
    same_batches: bool = False,
) -> Cost:
    """Compare an output folder with that of an undisturbed run.

    Args:
        out: the folder after all faults.
        undisturbed: the same command's folder without any.
        rows: of the input.
        tally: what the workers were given, see `tests.faults.daemon`.
        same_batches: whether scores have to be equal to the last bit.
    """
    ranked, rejects = table(out, "ranked"), table(out, "rejects")
    counts = json.loads((out / "run.json").read_text(encoding="utf-8"))["counts"]
    placed = len(ranked) + len(rejects) + counts["cut"] + counts["collapsed"]
    assert placed == counts["input"] == rows
    assert (counts["ranked"], counts["rejected"]) == (len(ranked), len(rejects))
    assert not ranked.duplicated(KEYS).any()

    expected = table(undisturbed, "ranked")
    both = expected.merge(ranked, on=KEYS, how="outer", suffixes=("_expected", ""), indicator=True)
    assert (both["_merge"] == "both").all()
    if same_batches:
        assert (both["score"] == both["score_expected"]).all()
        assert (both["rank"] == both["rank_expected"]).all()
    else:
        np.testing.assert_allclose(both["score"], both["score_expected"], atol=TOLERANCE, rtol=0)
        assert _ordered(ranked)
    columns = [*KEYS, "reason"]
    pd.testing.assert_frame_equal(
        _sorted(rejects[columns]), _sorted(table(undisturbed, "rejects")[columns])
    )
    assert not (out / "_swap.json").exists()

    keys = stored(out)["pair_key"]
    assert keys.nunique() >= counts["distinct"] - _unscored(rejects)
    given = sum(int(line.split()[1]) for line in tally.read_text().splitlines()) if tally else 0
    cost = Cost(given - keys.nunique() if tally else 0, len(keys) - keys.nunique())
    print(f"{out}: {cost}")  # shown by `pytest -rP`: the table in the README is made of it
    return cost


class Watcher:
    """Look at an output folder again and again while a run is at work on it.

    run.json is the sign of a whole result: a run that publishes takes it away first and puts its
    own there last. So wherever it is, each table beside it has the rows that it counts; and no
    result has fewer ranked rows than both the one before the run and the one after it.
    """

    def __init__(self, out: Path) -> None:
        """Start looking, in a thread."""
        self._out = out
        self._ranked: dict[str, int] = {}  # rows by run
        self._wrong: list[str] = []
        self._before = self._look()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking, and fail if anything was wrong at any moment."""
        self._ended.set()
        self._thread.join()
        after = self._look()
        assert not self._wrong, self._wrong[:3]
        if self._before and after:
            least = min(self._ranked[self._before], self._ranked[after])
            assert min(self._ranked.values()) >= least, self._ranked

    def _watch(self) -> None:
        seen: list[tuple[int, int] | None] = []
        while not self._ended.wait(_LOOK):
            names = [_changed(self._out / name) for name in ("run.json", "ranked", "rejects")]
            if names != seen:  # counting rows takes time of the cores that the run needs
                self._look()
            seen = names

    def _look(self) -> str | None:
        """Return the id of the run whose result is published now; None if there is no such sign."""
        record = _record(self._out)
        # Of a table that is split, a run counts only the partitions that it has replaced.
        if record is None or record.get("config", {}).get("output", {}).get("partition_by"):
            return None
        run, counts = str(record["run_id"]), record["counts"]
        rows = {name: _rows(self._out / name) for name in ("ranked", "rejects")}
        again = _record(self._out)
        if again is None or again["run_id"] != run:
            return None  # another result was published while this one was counted
        expected = {"ranked": counts["ranked"], "rejects": counts["rejected"]}
        if rows != expected:
            self._wrong.append(f"run {run}: {rows} are there, run.json says {expected}")
        self._ranked[run] = counts["ranked"]
        return run


def _record(out: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content


def table(out: Path, name: str) -> pd.DataFrame:
    """A published table."""
    return pq.read_table(out / name).to_pandas()


def stored(out: Path) -> pd.DataFrame:
    """Every score in the store of an output folder, of all fingerprints and attempts."""
    files = sorted(out.glob("scores/fingerprint=*/attempt=*/*.parquet"))
    return pd.concat([pq.ParquetFile(file).read().to_pandas() for file in files])


def _changed(path: Path) -> tuple[int, int] | None:
    """Return a file's or folder's identity and time; None if it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _rows(folder: Path) -> int | None:
    """Rows of a Parquet table; None if it is not there or is being replaced."""
    try:
        return sum(pq.ParquetFile(file).metadata.num_rows for file in folder.rglob("*.parquet"))
    except FileNotFoundError:
        return None


def _ordered(ranked: pd.DataFrame) -> bool:
    """Whether ranks are 1, 2, ... by descending score, then document."""
    order = ranked.sort_values(["query_id", "score", "doc_id"], ascending=[True, False, False])
    return bool((order["rank"] == order.groupby("query_id").cumcount() + 1).all())


def _unscored(rejects: pd.DataFrame) -> int:
    return int(rejects["reason"].isin(["nonfinite_score", "out_of_memory", "input_changed"]).sum())


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.astype(str).sort_values(list(rows.columns), ignore_index=True)
