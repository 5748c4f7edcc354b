"""A few lists with their texts, before and after. Only for who asks: texts are private."""

from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Any, Final

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

_DEPTH: Final = 5  # documents of each order


def examples(
    rows: DataFrame, texts: DataFrame, document: Mapping[str, Any], count: int
) -> list[dict[str, Any]]:
    """Return the first documents of both orders of the lists that changed most, helped and hurt.

    Args:
        rows: query_id, columns of the group, doc_id, after, before, relevance.
        texts: query_id, doc_id, query, doc.
        document: with `per_query`.
        count: of lists at most.

    Returns:
        Per list `query_id`, `query`, `before` and `after`: rows of rank, doc_id, label and text.
    """
    changed = document.get("per_query") or {"most_helped": [], "most_hurt": []}
    turns = chain.from_iterable(zip_longest(changed["most_helped"], changed["most_hurt"]))
    numbers = ("before", "after", "delta")
    wanted = [{k: v for k, v in row.items() if k not in numbers} for row in turns if row][:count]
    ids = F.col("query_id").isin([keys["query_id"] for keys in wanted])
    near = (F.col("after") <= _DEPTH) | (F.col("before") <= _DEPTH)
    told = texts.where(ids).select("query_id", "doc_id", "query", "doc")
    told = told.dropDuplicates(["query_id", "doc_id"])  # impressions of a pair have one text
    found = rows.where(ids & near).join(told, on=["query_id", "doc_id"]).collect()
    shown = []
    for keys in wanted:
        mine = [row for row in found if keys.items() <= row.asDict().items()]
        orders = {
            side: [
                {"rank": rank, "doc_id": row["doc_id"], "label": row["relevance"],
                 "text": row["doc"]}
                for rank, row in sorted((row[side], row) for row in mine)
                if rank <= _DEPTH
            ]
            for side in ("before", "after")
        }  # fmt: skip
        if mine:
            shown.append({**keys, "query": mine[0]["query"], **orders})
    return shown
