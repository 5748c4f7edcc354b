"""Choose the documents of one query. Executors import it: it needs pandas alone."""

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Final

import pandas as pd

TRAIN: Final = "train"
HELD_OUT: Final = "dev"
#: What `Choice` returns: positives first, then negatives, each by falling score.
SCHEMA: Final = (
    "key string, split string, query string, docs array<string>, scores array<float>, "
    "labels array<int>, positives int, repeated int, no_text int"
)
_PIECE: Final = 5  # characters; words would not do for Chinese


@dataclass(frozen=True)
class Choice:
    """The keys of section `export` that are about one query."""

    negatives: int
    duplicates: float
    held_out: float
    seed: int | None  # None: the highest scores

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return one row of `SCHEMA`, none if positives or negatives are lacking.

        `rows`: query_id, doc_id, query and doc (null where the text is missing), score, label and
        is_positive of the candidates of a query. Their order means nothing.
        """
        known = rows[rows["doc"].notna()]
        by_score = known.sort_values(["score", "doc_id"], ascending=[False, True])
        positives = by_score[by_score["is_positive"]]
        kept = [_pieces(doc) for doc in positives["doc"]]
        chosen: list[int] = []
        repeated = 0
        for at, doc in self._ordered(by_score[~by_score["is_positive"]])["doc"].items():
            if len(chosen) == self.negatives:
                break
            pieces = _pieces(doc)
            shared = ((len(pieces & other), len(pieces) + len(other)) for other in kept)
            if any(n / (both - n) >= self.duplicates for n, both in shared):  # Jaccard
                repeated += 1
                continue
            kept.append(pieces)
            chosen.append(at)  # type: ignore[arg-type]
        if positives.empty or not chosen:
            return pd.DataFrame(columns=[part.split()[0] for part in SCHEMA.split(", ")])
        negatives = by_score[by_score.index.isin(chosen)].assign(label=0)  # whatever its grade
        docs = pd.concat([positives, negatives])
        query = known["query"].min()
        split_by = _hash(_normal(query))
        return pd.DataFrame([{
            "key": split_by + str(rows["query_id"].iloc[0]), "query": query,
            "split": HELD_OUT if int(split_by[:8], 16) < self.held_out * 2**32 else TRAIN,
            "docs": list(docs["doc"]), "scores": list(docs["score"]),
            "labels": [int(label) for label in docs["label"]], "positives": len(positives),
            "repeated": repeated, "no_text": len(rows) - len(known),
        }])  # fmt: skip

    def _ordered(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Negatives in the order in which they are taken."""
        if self.seed is None:
            return rows
        drawn = [_hash(f"{self.seed} {q} {d}") for q, d in zip(rows["query_id"], rows["doc_id"],
                                                                 strict=True)]  # fmt: skip
        return rows.assign(drawn=drawn).sort_values(["drawn", "doc_id"])


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _pieces(text: str) -> set[str]:
    normal = _normal(text)
    return {normal[at : at + _PIECE] for at in range(max(1, len(normal) - _PIECE + 1))}
