"""The job end to end on whatever Spark this Python has, against another one's results.

python -m tests.platforms.run OUT [REFERENCE]      both: folders of this script
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pyspark

from jobs import evaluate, rerank
from jobs.runtime.errors import DONE
from jobs.store.__main__ import main as store
from tests.sample import PAIRS, SAMPLE

TOLERANCE = 1e-6  # logits in fp32


def words(**keys: object) -> list[str]:
    pairs = [(f"--{key.replace('__', '.')}", str(value)) for key, value in keys.items()]
    return ["--config", "conf/local.yaml", *(word for pair in pairs for word in pair)]


def scored(out: Path, scores: Path) -> int:
    """Rerank the sample into a folder; return how many pairs had no score in the store."""
    code = rerank.main(
        words(
            input__path=SAMPLE, input__doc_template="{title}\\n{body}", output__path=out,
            store__path=scores, model__precision="fp32", mlflow__enabled="false",
        )
    )  # fmt: skip
    assert code == DONE
    return int(json.loads((out / "run.json").read_text())["counts"]["scored"])


def compare(out: Path, reference: Path) -> None:
    """Compare two ranked tables: the same rows in the same order, scores within the tolerance."""
    ours, theirs = (
        pq.read_table(folder / "ranked").to_pandas().sort_values(["query_id", "rank"])
        for folder in (out, reference)
    )
    assert ours["doc_id"].tolist() == theirs["doc_id"].tolist()
    np.testing.assert_allclose(ours["score"], theirs["score"], atol=TOLERANCE, rtol=0)


def main(argv: list[str]) -> None:
    out, reference = Path(argv[0]), Path(argv[1]) if argv[1:] else None
    assert scored(out / "first", out / "scores") > 0.9 * PAIRS
    assert scored(out / "again", out / "scores") == 0
    table, gate = out / "first" / "ranked", "nDCG@10 delta >= 0"
    code = evaluate.main(
        words(ranked__path=table, output__path=out / "verdict", evaluation__gate=gate,
              mlflow__enabled="false")
    )  # fmt: skip
    assert code == DONE
    assert store(["verify", "--store.path", str(out / "scores")]) == DONE
    if reference:
        assert scored(out / "theirs", reference / "scores") == 0, "scores of another Spark"
        for name in ("first", "again", "theirs"):
            compare(out / name, reference / "first")
    print(f"Spark {pyspark.__version__}: {PAIRS} pairs, all as they should be")


if __name__ == "__main__":
    main(sys.argv[1:])
