"""Fill in the first-stage columns of sample.jsonl: a plain BM25, computed and not made up.

The texts and labels of the sample are written by hand; ``retrieval_score`` and ``retrieval_rank``
are computed from them here. Run it after editing a text:

    python jobs/demo/build_sample.py            # rewrite the two columns in place
    python jobs/demo/build_sample.py --check    # exit 1 if the file is not up to date
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SAMPLE = Path(__file__).with_name("sample.jsonl")
K1, B = 0.9, 0.4
STOP_LIST = (
    "a an and are as at be but by for from if in is it my no not of on or so that the to with"
)
STOP_WORDS = frozenset(STOP_LIST.split())
# A run of Han characters is cut into unigrams and bigrams, anything else into words.
CHUNK = re.compile(r"[\u4e00-\u9fff]+|[^\W\u4e00-\u9fff]+")


def tokenize(text: str, language: str) -> list[str]:
    """Return the index terms of a text: words for English, Han unigrams and bigrams for Chinese."""
    if language == "en":
        return [word for word in re.findall(r"\w+", text.lower()) if word not in STOP_WORDS]
    terms: list[str] = []
    for chunk in CHUNK.findall(text.lower()):
        if "\u4e00" <= chunk[0] <= "\u9fff":
            terms += chunk
            terms += (chunk[i : i + 2] for i in range(len(chunk) - 1))
        else:
            terms.append(chunk)
    return terms


class BM25:
    """Lucene's BM25, with exact document lengths, over one collection of tokenised documents."""

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
        """Sum the weights of the query's terms; a term that occurs twice in it counts twice."""
        counts = Counter(document)
        norm = K1 * (1 - B + B * len(document) / self.mean_length)
        return sum(self.idf[t] * counts[t] / (counts[t] + norm) for t in query if t in counts)


def document_text(row: Row) -> str:
    """Return the text the first stage searches."""
    return f"{row['title'] or ''} {row['body']}".strip()


def first_stage(rows: list[Row]) -> list[Row]:
    """Return the rows with ``retrieval_score`` and ``retrieval_rank`` recomputed."""
    tokens: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for row in rows:
        language = row["language"]
        tokens[language][row["doc_id"]] = tokenize(document_text(row), language)
    indexes = {language: BM25(documents.values()) for language, documents in tokens.items()}

    candidates: dict[str, list[Row]] = defaultdict(list)
    result = []
    for row in rows:
        language = row["language"]
        query = tokenize(row["query"], language)
        score = indexes[language].score(query, tokens[language][row["doc_id"]])
        result.append({**row, "retrieval_score": round(score, 6)})
        candidates[row["query_id"]].append(result[-1])
    for group in candidates.values():
        group.sort(key=lambda r: (r["retrieval_score"], r["doc_id"].encode()), reverse=True)
        for rank, row in enumerate(group, start=1):
            row["retrieval_rank"] = rank
    return result


def main(argv: list[str] | None = None) -> int:
    """Rewrite the sample in place, or with ``--check`` only compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    arguments = parser.parse_args(argv)

    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    built = first_stage(rows)
    if not arguments.check:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in built)
        SAMPLE.write_text(text, encoding="utf-8")
        return 0
    stale = [row["doc_id"] for row, fresh in zip(rows, built, strict=True) if row != fresh]
    if stale:
        sys.stderr.write(f"{SAMPLE.name}: {len(stale)} stale rows, the first is {stale[0]}\n")
        sys.stderr.write("rebuild it with: python jobs/demo/build_sample.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
