"""Rerank the embedded sample with the embedded model: `make demo`.

python -m jobs.demo [OUT]
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from jobs import rerank
from jobs.demo import FOLDER
from jobs.runtime.errors import DONE

_SAMPLE: Final = FOLDER / "sample.jsonl"
_SHOWN: Final = 4  # documents of each order
_WIDTH: Final = 92  # characters of a line


def main(argv: Sequence[str]) -> int:
    """Rerank the sample as a user would, then show one query of each language before and after."""
    out = Path(argv[0] if argv else "out/demo").resolve()
    settings = {
        "input.path": _SAMPLE,
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
        sys.stdout.write(f"\n{_before_and_after(pd.read_parquet(out / 'ranked'))}\n")
    return code


def _before_and_after(ranked: pd.DataFrame) -> str:
    """Return both orders of the query of each language that gained most, and a summary.

    The gain of a query is how much the reciprocal rank of its best document rose.
    """
    lines = _SAMPLE.read_text(encoding="utf-8").splitlines()
    texts = pd.DataFrame(map(json.loads, lines)).fillna({"title": ""})
    rows = ranked.merge(texts[["query_id", "doc_id", "query", "title", "body"]])
    best = rows[rows["label"] == rows.groupby("query_id")["label"].transform("max")]
    first = best.groupby("query_id")[["retrieval_rank", "rank"]].min()
    gains = 1 / first["rank"] - 1 / first["retrieval_rank"]
    lines = []
    for language in texts["language"].unique():
        queries = rows[rows["language"] == language].groupby("query_id")
        _, shown = max(queries, key=lambda query: (gains[query[0]], query[0]))
        lines.append(f"query  {shown['query'].iloc[0]}")
        for title, order, score, form in (
            ("before (BM25)", "retrieval_rank", "retrieval_score", "6.2f"),
            ("after (cross-encoder)", "rank", "score", "+6.2f"),
        ):
            lines.append(f"  {title}")
            for row in shown.sort_values(order).head(_SHOWN).to_dict("records"):
                text = " · ".join(part for part in (row["title"], row["body"]) if part)
                place = f"  {row[order]:>3}  grade {row['label']:.0f}  {row[score]:{form}}"
                lines.append(_fit(f"{place}  {text}"))
        lines.append("")
    better, worse = (gains > 0).sum(), (gains < 0).sum()
    lines.append(
        f"Shown is the query of each language that gained most. Of {len(gains)} queries {better} "
        f"found their best document earlier, {worse} later, "
        f"{len(gains) - better - worse} where it was."
    )
    return "\n".join(lines)


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
