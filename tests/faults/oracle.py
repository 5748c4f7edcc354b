"""The one oracle of all faults: whatever happened, the result is that of an undisturbed run.

Reads what was written, with pyarrow, and asks the job's own record only where it is the claim.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

KEYS = ["query_id", "doc_id"]
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


def table(out: Path, name: str) -> pd.DataFrame:
    """A published table."""
    return pq.read_table(out / name).to_pandas()


def stored(out: Path) -> pd.DataFrame:
    """Every score in the store of an output folder, of all fingerprints and attempts."""
    files = sorted(out.glob("scores/fingerprint=*/attempt=*/*.parquet"))
    return pd.concat([pq.ParquetFile(file).read().to_pandas() for file in files])


def _ordered(ranked: pd.DataFrame) -> bool:
    """Whether ranks are 1, 2, ... by descending score, then document."""
    order = ranked.sort_values(["query_id", "score", "doc_id"], ascending=[True, False, False])
    return bool((order["rank"] == order.groupby("query_id").cumcount() + 1).all())


def _unscored(rejects: pd.DataFrame) -> int:
    return int(rejects["reason"].isin(["nonfinite_score", "out_of_memory", "input_changed"]).sum())


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.astype(str).sort_values(list(rows.columns), ignore_index=True)
