"""Compute the first-stage columns of the embedded sample with BM25.

Texts and labels of the sample are written by hand; `retrieval_score` and `retrieval_rank` are
computed from the texts. After editing a text, run

    python -m tests.build_sample            # rewrite the two columns in place
    python -m tests.build_sample --check    # exit 1 if the file is not up to date
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, Final

from jobs.demo import FOLDER

Row = dict[str, Any]

SAMPLE: Final = FOLDER / "sample.jsonl"
K1, B = 0.9, 0.4
STOP_LIST: Final = (
    "a an and are as at be but by for from if in is it my no not of on or so that the to with"
)
STOP_WORDS: Final = frozenset(STOP_LIST.split())


def tokenize(text: str, language: str) -> list[str]:
    """Return the index terms of a text: words for English, Han unigrams and bigrams for Chinese."""
    if language == "en":
        return [word for word in re.findall(r"\w+", text.lower()) if word not in STOP_WORDS]
    terms: list[str] = []
    for chunk in re.findall(r"[\u4e00-\u9fff]+|[^\W\u4e00-\u9fff]+", text.lower()):
        if "\u4e00" <= chunk[0] <= "\u9fff":
            terms += chunk
            terms += (chunk[i : i + 2] for i in range(len(chunk) - 1))
        else:
            terms.append(chunk)
    return terms


class BM25:
    """Lucene's BM25 with exact document lengths, over one collection of tokenised documents."""

    def __init__(self, documents: Iterable[list[str]]) -> None:
        """Count document frequencies and the mean length."""
        collection = list(documents)
        self.mean_length = sum(map(len, collection)) / len(collection)
        frequencies = Counter(term for document in collection for term in set(document))
        self.idf = {
            term: math.log(1 + (len(collection) - df + 0.5) / (df + 0.5))
            for term, df in frequencies.items()
        }

    def score(self, query: list[str], document: list[str]) -> float:
        """Return the sum of the weights of the query's terms, repeated ones included."""
        counts = Counter(document)
        norm = K1 * (1 - B + B * len(document) / self.mean_length)
        return sum(self.idf[t] * counts[t] / (counts[t] + norm) for t in query if t in counts)


def first_stage(rows: list[Row]) -> list[Row]:
    """Return the rows with `retrieval_score` and `retrieval_rank` recomputed."""
    tokens: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for row in rows:
        text = f"{row['title'] or ''} {row['body']}".strip()
        tokens[row["language"]][row["doc_id"]] = tokenize(text, row["language"])
    indexes = {language: BM25(documents.values()) for language, documents in tokens.items()}

    candidates: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        language = row["language"]
        query = tokenize(row["query"], language)
        score = indexes[language].score(query, tokens[language][row["doc_id"]])
        candidates[row["query_id"]].append({**row, "retrieval_score": round(score, 6)})
    ranks = {}
    for group in candidates.values():
        group.sort(key=lambda r: (r["retrieval_score"], r["doc_id"].encode()), reverse=True)
        for rank, row in enumerate(group, start=1):
            ranks[row["query_id"], row["doc_id"]] = {**row, "retrieval_rank": rank}
    return [ranks[row["query_id"], row["doc_id"]] for row in rows]


def main(argv: list[str] | None = None) -> int:
    """Rewrite the sample in place, or with `--check` only compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    arguments = parser.parse_args(argv)

    text = SAMPLE.read_text(encoding="utf-8")
    rows = first_stage([json.loads(line) for line in text.splitlines()])
    fresh = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not arguments.check:
        SAMPLE.write_text(fresh, encoding="utf-8")
    elif fresh != text:
        sys.stderr.write(f"{SAMPLE.name} is stale; run python -m tests.build_sample\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
