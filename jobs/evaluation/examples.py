"""A few queries with their texts, before and after. Only for who asks: texts are private."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, zip_longest
from operator import itemgetter
from typing import Any, Final

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

_DEPTH: Final = 5  # documents of each order


def choose(document: Mapping[str, Any], count: int) -> list[str]:
    """The queries that changed most, helped and hurt in turn, by id."""
    changed = document.get("per_query") or {"most_helped": [], "most_hurt": []}
    turns = zip_longest(changed["most_helped"], changed["most_hurt"])
    return [row["query_id"] for row in chain.from_iterable(turns) if row is not None][:count]


def examples(rows: DataFrame, texts: DataFrame, queries: list[str]) -> list[dict[str, Any]]:
    """The first documents of both orders of some queries.

    Args:
        rows: query_id, doc_id, after, before, relevance.
        texts: query_id, doc_id, query, doc.
        queries: ids, in the order to show them.

    Returns:
        Per query `query_id`, `query`, `before` and `after`, lists of `rank`, `doc_id`, `label`
        and `text`.
    """
    near = (F.col("after") <= _DEPTH) | (F.col("before") <= _DEPTH)
    wanted = F.col("query_id").isin(queries)
    told = texts.where(wanted).select("query_id", "doc_id", "query", "doc")
    found = rows.where(wanted & near).join(told, on=["query_id", "doc_id"]).collect()
    shown = []
    for query in queries:
        mine = {row["doc_id"]: row for row in found if row["query_id"] == query}
        if not mine:
            continue
        orders = {side: _first(mine.values(), side) for side in ("before", "after")}
        shown.append({"query_id": query, "query": next(iter(mine.values()))["query"], **orders})
    return shown


def _first(rows: Iterable[Row], side: str) -> list[dict[str, Any]]:
    return [
        {"rank": row[side], "doc_id": row["doc_id"], "label": row["relevance"], "text": row["doc"]}
        for row in sorted(rows, key=itemgetter(side))
        if row[side] <= _DEPTH
    ]
