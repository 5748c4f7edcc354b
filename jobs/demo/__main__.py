"""Rerank the embedded sample with the embedded model: `make demo`.

python -m jobs.demo [OUT]
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from jobs import rerank
from jobs.demo import FOLDER
from jobs.runtime.errors import DONE

_SHOWN: Final = 4  # documents of each order
_WIDTH: Final = 92  # characters of a line

Rows = list[dict[str, Any]]


def main(argv: Sequence[str]) -> int:
    """Rerank the sample as a user would, then show one query of each language before and after."""
    out = Path(argv[0] if argv else "out/demo").resolve()
    settings = {
        "input.path": FOLDER / "sample.jsonl",
        "input.doc_template": "{title}\\n{body}",
        "model.name": "embedded",
        "output.path": out,
        "mlflow.tracking_uri": f"sqlite:///{out}/mlflow.db",
        "spark.master": "local[2]",
    }
    arguments = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    arguments += ["--evaluation.slices", "kind", "--evaluation.slices", "language"]
    code = rerank.main(arguments)
    if code == DONE:
        lines = (FOLDER / "sample.jsonl").read_text(encoding="utf-8").splitlines()
        ranked = pq.read_table(out / "ranked").to_pylist()
        sys.stdout.write("\n" + show([json.loads(line) for line in lines], ranked) + "\n")
    return code


def show(sample: Rows, ranked: Rows) -> str:
    """Return both orders of the query of each language that gained most, and a summary.

    The gain of a query is how much the reciprocal rank of its best document rose.
    """
    documents = {row["doc_id"]: row for row in sample}
    queries: dict[str, Rows] = defaultdict(list)
    for row in ranked:
        queries[row["query_id"]].append(row)
    gains = {query: _gain(rows) for query, rows in queries.items()}
    lines = []
    for language in dict.fromkeys(row["language"] for row in sample):
        ids = [query for query, rows in queries.items() if rows[0]["language"] == language]
        best = max(ids, key=lambda query: (gains[query], query))
        lines += _before_and_after(queries[best], documents)
    better, worse = (sum(sign * gain > 0 for gain in gains.values()) for sign in (1, -1))
    lines.append(
        f"Shown is the query of each language that gained most. Of {len(gains)} queries {better} "
        f"found their best document earlier, {worse} later, "
        f"{len(gains) - better - worse} where it was."
    )
    return "\n".join(lines)


def _gain(rows: Rows) -> float:
    top = max(row["label"] for row in rows)
    best = [row for row in rows if row["label"] == top]
    before, after = (min(int(row[key]) for row in best) for key in ("retrieval_rank", "rank"))
    return 1 / after - 1 / before


def _before_and_after(rows: Rows, documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [f"query  {documents[rows[0]['doc_id']]['query']}"]
    for title, key in (("before (BM25)", "retrieval_rank"), ("after (cross-encoder)", "rank")):
        lines.append(f"  {title}")
        for row in sorted(rows, key=lambda row: row[key])[:_SHOWN]:
            document = documents[row["doc_id"]]
            text = " · ".join(part for part in (document["title"], document["body"]) if part)
            score = f"{row['retrieval_score']:6.2f}" if key != "rank" else f"{row['score']:+6.2f}"
            lines.append(_fit(f"  {row[key]:>3}  grade {row['label']:.0f}  {score}  {text}"))
    return [*lines, ""]


def _fit(line: str) -> str:
    """Return the line cut to the terminal; Chinese characters are two columns wide."""
    width = 0
    for at, character in enumerate(line):
        width += 2 if ord(character) > 0x2E7F else 1
        if width > _WIDTH:
            return line[:at] + "…"
    return line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
