"""The measures of one query, as Spark expressions over its short arrays.

`hits` is an array of (rank, relevance), judged and retrieved documents by rank; the column `grades`
holds the grades above 0 of all judged documents, descending; `n_retrieved` counts the ranking.
"""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

from jobs.evaluation.measures import Measure


def best_order(hits: Column) -> Column:
    """The same documents, ranked by grade; unjudged ones would follow and change no measure."""
    grades = F.sort_array(F.transform(hits, lambda hit: hit["relevance"]), asc=False)
    return F.transform(
        grades, lambda grade, i: F.struct((i + 1).alias("rank"), grade.alias("relevance"))
    )


def formula(measure: Measure, hits: Column) -> Column:
    """A measure of one query, in double; 0 where it is undefined."""
    k, rel = measure.cutoff, measure.rel
    seen = hits if k is None else F.filter(hits, lambda hit: hit["rank"] <= k)
    ranks = F.transform(F.filter(seen, lambda hit: hit["relevance"] >= rel), lambda h: h["rank"])
    if measure.name == "nDCG":
        result = _ndcg(seen, k)
    elif measure.name == "RR":
        # Voorhees, "The TREC-8 Question Answering Track Report", 1999.
        result = F.try_divide(F.lit(1.0), F.get(ranks, F.lit(0)))
    elif measure.name == "AP":
        # Buckley and Voorhees, SIGIR 2000; divided by all relevant documents, found or not.
        precisions = F.transform(ranks, lambda rank, i: (i + 1) / rank)
        result = F.try_divide(_sum(precisions), relevant_in_qrels(rel))
    elif measure.name == "P":
        result = F.size(ranks) / F.lit(k)  # by k, even when fewer were retrieved
    elif measure.name == "R":
        result = F.try_divide(F.size(ranks), relevant_in_qrels(rel))
    elif measure.name == "Success":
        result = (F.size(ranks) > 0).cast("double")
    else:  # Judged, as ir_measures defines it: of the first k, or of all where fewer came
        result = F.try_divide(F.size(seen), F.least(F.lit(k), F.col("n_retrieved")))
    return F.coalesce(result, F.lit(0.0))


def _ndcg(seen: Column, k: int | None) -> Column:
    """Järvelin and Kekäläinen, TOIS 20(4), 2002, as in trec_eval: the gain is the grade.

    The discount is log2(rank + 1) (Burges et al., ICML 2005); grades below 0 gain 0; the ideal
    order has all judged documents of the query, retrieved or not.
    """
    gains = F.transform(
        seen, lambda hit: F.greatest(hit["relevance"], F.lit(0.0)) / F.log2(hit["rank"] + 1)
    )
    grades = F.col("grades")
    best = grades if k is None else F.slice(grades, 1, k)
    ideal = F.transform(best, lambda grade, i: grade / F.log2(i + 2))
    return F.try_divide(_sum(gains), _sum(ideal))


def _sum(values: Column) -> Column:
    return F.aggregate(values, F.lit(0.0), lambda total, value: total + value)


def relevant_in_qrels(rel: int) -> Column:
    """Documents of the query with a grade of at least `rel`."""
    return F.size(F.filter("grades", lambda grade: grade >= rel))
