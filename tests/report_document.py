"""A made-up evaluation document, as the report is given it, of any number of queries."""

from __future__ import annotations

import math
import random
from typing import Any

MEASURES = ["nDCG@10", "RR(rel=2)@10", "Success@1", "Judged@10"]
_BEFORE = [0.5058, 0.8233, 0.7442, 0.9512]
_AFTER = [0.5732, 0.8876, 0.8140, 0.9488]
_WIDTH = [0.047, 0.066, 0.16, 0.012]  # of the intervals of the differences, to each side
_P = [0.0012, 0.0310, 0.2140, 0.6800]
_HOLM = [0.0048, 0.0930, 0.4280, 0.6800]


def make_document(queries: int = 43, **changes: Any) -> dict[str, Any]:
    """Blocks that belong together; `changes` replaces some of them."""
    rng = random.Random(queries)
    before = dict(zip(MEASURES, _BEFORE, strict=True))
    after = dict(zip(MEASURES, _AFTER, strict=True))
    delta = {name: after[name] - before[name] for name in MEASURES}
    document = {
        "run_id": "3f0c8cc590ea6943098590ac3d245e6e",
        "started": "2026-11-22T01:00:00+00:00",
        "name": "reranked",
        "measures": list(MEASURES),
        "queries": queries,
        "queries_unanswered": 0,
        "queries_without_relevant": 1,
        "queries_only_in_run": 157,
        "first_stage_order": "retrieval_score",
        "first_stage": before,
        "reranked": after,
        "delta": delta,
        "ceiling": {"nDCG@10": 0.8312, "RR(rel=2)@10": 1.0, "Success@1": 1.0},
        "intervals": {
            "level": 0.95,
            "first_stage": {name: _around(before[name], 0.053) for name in MEASURES},
            "reranked": {name: _around(after[name], 0.053) for name in MEASURES},
            "delta": {
                name: _around(delta[name], width)
                for name, width in zip(MEASURES, _WIDTH, strict=True)
            },
        },
        "tests": _tests(queries),
        "baseline": None,
        "systems": [],
        "moved": _moved(queries, rng),
        "per_query": _per_query(queries, rng),
        "slices": [_slices("language", ["en", "zh", "de"], queries, rng)],
        "scores": _scores(rng),
        "lengths": _lengths(rng),
        "operations": _operations(queries),
        "gate": None,
        "examples": [],
        "config": {
            "model": {"name": "BAAI/bge-reranker-v2-m3", "max_length": 512, "device": None},
            "batching": {"max_tokens": 16384},
            "spark": {"master": "local[*]", "settings": ["spark.executor.memory"]},
            "input": {"path": "hdfs:///logs/2026-11/" + 12 * "part-" + "0.parquet"},
        },
        "versions": {"python": "3.11.2", "spark": "4.1.0", "torch": "2.13.0"},
    }
    return document | changes


def with_baseline(document: dict[str, Any]) -> dict[str, Any]:
    """The same with an earlier model to compare with, and a third for the table of systems."""
    values = {name: value - 0.021 for name, value in document["reranked"].items()}
    delta = dict.fromkeys(values, 0.021)
    baseline = {
        "name": "bge-reranker-base",
        "queries": document["queries"],
        "values": values,
        "delta": delta,
        "intervals": {name: _around(0.021, 0.013) for name in values},
        "tests": _tests(document["queries"]),
    }
    systems = [
        {"name": "first stage", "values": document["first_stage"], "versus": _versus(-0.046, 0.01)},
        {"name": "bge-reranker-base", "values": values, "versus": None},
        {"name": "reranked", "values": document["reranked"], "versus": _versus(0.021, 0.03)},
        {
            "name": "ms-marco-MiniLM-L6-v2",
            "values": {name: value - 0.004 for name, value in document["reranked"].items()},
            "versus": _versus(0.017, 0.4),
        },
    ]
    return document | {"baseline": baseline, "systems": systems}


def make_gate(*, passed: bool) -> dict[str, Any]:
    """Three rules, of which two fail where it is not passed."""
    rules = [
        {"rule": "nDCG@10 >= 0.60", "value": 0.5732, "limit": 0.6, "passed": passed, "note": ""},
        {
            "rule": "RR(rel=2)@10 no worse than first stage",
            "value": 0.0643,
            "limit": 0.0,
            "passed": True,
            "note": "p = 0.093 after Holm",
        },
        {
            "rule": "ms_per_pair.p95 <= 12",
            "value": None if not passed else 11.2,
            "limit": 12,
            "passed": passed,
            "note": "nothing was scored",
        },
    ]
    return {"passed": passed, "rules": rules}


def make_examples() -> list[dict[str, Any]]:
    """Two queries, one of them in Chinese."""
    texts = {
        "d3": "Cancel subscription? I would like to cancel my subscription but want to keep notes.",
        "d8": "Ending a paid subscription. Open Settings, then Billing, and choose End. " * 6,
        "d11": "Keep losing notes after a sync? Check that the clock of the phone is right.",
    }
    rows: list[dict[str, Any]] = [
        {"rank": place, "doc_id": name, "label": label, "text": texts[name]}
        for place, (name, label) in enumerate([("d3", 0), ("d11", None), ("d8", 3)], 1)
    ]
    order = [2, 0, 1]
    after = [rows[place] | {"rank": rank} for rank, place in enumerate(order, 1)]
    chinese: list[dict[str, Any]] = [
        {"rank": 1, "doc_id": "头孢-17", "label": 3, "text": "普通感冒一般不需要吃头孢。"},
        {"rank": 2, "doc_id": "洗澡-2", "label": 0, "text": "感冒了可以洗澡，水温不要太低。"},
    ]
    return [
        {"query_id": "q1", "query": "cancel subscription without losing my notes",
         "before": rows, "after": after},
        {"query_id": "q2", "query": "感冒了要不要吃头孢",
         "before": [row | {"rank": 3 - row["rank"]} for row in reversed(chinese)],
         "after": chinese},
    ]  # fmt: skip


def bare_document(**changes: Any) -> dict[str, Any]:
    """What is left where nothing could be judged and no run is known of."""
    document: dict[str, Any] = dict.fromkeys(make_document(1))
    return document | {"measures": [], "queries": 0, "reranked": {}, "systems": []} | changes


def _around(middle: float, width: float) -> list[float]:
    return [middle - width, min(middle + width, 1.0)]


def _tests(queries: int) -> dict[str, Any]:
    helped, hurt = round(0.58 * queries), round(0.23 * queries)
    return {
        name: {
            "p": p,
            "p_holm": holm,
            "effect_size": 0.31 - 0.1 * place,
            "helped": helped,
            "hurt": hurt,
            "tied": queries - helped - hurt,
            "method": "paired randomisation test, 9,999 resamples",
        }
        for place, (name, p, holm) in enumerate(zip(MEASURES, _P, _HOLM, strict=True))
    }


def _versus(delta: float, p: float) -> dict[str, Any]:
    return {name: {"delta": delta, "p": p / 2, "p_holm": p} for name in MEASURES[:3]}


def _moved(queries: int, rng: random.Random) -> dict[str, Any]:
    lows = range(-90, 90, 10)
    return {
        "queries_compared": queries,
        "top1_change_rate": 0.907,
        "rank_change": {
            "mean_absolute": 18.2,
            "p5": -40,
            "p50": 0,
            "p95": 35,
            "histogram": [
                [low, round(queries * (20 * math.exp(-(((low + 5) / 30) ** 2)) + rng.random()))]
                for low in lows
            ],
        },
        "bin_width": 10,
        "kendall_tau": {"mean": 0.31, "p5": -0.1, "p50": 0.3, "p95": 0.6},
        "rbo": {"mean": 0.42, "p5": 0.11, "p50": 0.4, "p95": 0.71, "persistence": 0.9},
        "flow": {
            "k": 10,
            "rows": [
                {"from": name, "count": round(part * 10 * queries)}
                for name, part in (
                    ("1-10", 0.49), ("11-20", 0.19), ("21-50", 0.2), ("51-100", 0.12),
                    ("beyond 100", 0.0),
                )
            ],
        },
        "truncation": {
            "pairs": 3 * queries, "queries": queries // 3, "queries_in_top": queries // 6, "k": 10,
        },
    }  # fmt: skip


def _per_query(queries: int, rng: random.Random) -> dict[str, Any]:
    gains = [rng.betavariate(1.2, 4) for _ in range(round(0.58 * queries))]
    losses = [-rng.betavariate(1.1, 6) for _ in range(round(0.23 * queries))]
    ties = [0.0] * (queries - len(gains) - len(losses))
    differences = sorted(gains + ties + losses, reverse=True)

    def rows(chosen: list[float]) -> list[dict[str, Any]]:
        return [
            {
                "query_id": f"{1037798 + 97 * place}",
                "before": (1 - d) / 2,
                "after": (1 + d) / 2,
                "delta": d,
            }
            for place, d in enumerate(chosen)
        ]

    return {
        "measure": "nDCG@10",
        "differences": differences[:1000],
        "most_helped": rows([d for d in differences if d > 0][:20]),
        "most_hurt": rows([d for d in reversed(differences) if d < 0][:20]),
    }


def _slices(column: str, names: list[str], queries: int, rng: random.Random) -> dict[str, Any]:
    rows = []
    for place, name in enumerate(names):
        delta = {m: 0.09 - 0.06 * place + 0.01 * rng.random() for m in MEASURES}
        before = {m: 0.5 + 0.1 * rng.random() for m in MEASURES}
        rows.append(
            {
                "value": name,
                "queries": queries // len(names),
                "first_stage": before,
                "reranked": {m: before[m] + delta[m] for m in MEASURES},
                "delta": delta,
                "intervals": {m: _around(delta[m], 0.05) for m in MEASURES},
                "p_holm": {m: min(1.0, 0.003 * 20**place) for m in MEASURES},
            }
        )
    return {"column": column, "rows": rows}


def _scores(rng: random.Random) -> dict[str, Any]:
    edges = [-11 + 0.5 * place for place in range(45)]

    def bell(middle: float, width: float, size: float) -> list[int]:
        return [
            round(size * math.exp(-(((edge + 0.25 - middle) / width) ** 2))) for edge in edges[:-1]
        ]

    pairs = [1210, 240, 150, 96, 80, 71, 66, 60, 92, 310]
    reliability: list[dict[str, Any]] = [
        {
            "low": place / 10,
            "high": (place + 1) / 10,
            "pairs": number,
            "mean_probability": place / 10 + 0.05,
            "share_relevant": min(1.0, 0.03 + 0.07 * place + 0.03 * rng.random()),
        }
        for place, number in enumerate(pairs)
    ]
    reliability[6] |= {"pairs": 0, "mean_probability": None, "share_relevant": None}
    return {
        "edges": edges,
        "relevant": bell(3, 3, 60),
        "not_relevant": bell(-5, 3.5, 210),
        "unjudged": bell(-7, 2.5, 400),
        "reliability": reliability,
        "ece": 0.2134,
        "judged_pairs": 2309,
    }


def _lengths(rng: random.Random) -> dict[str, Any]:
    edges = [16.0 * place for place in range(33)]
    counts = [
        round(900 * math.exp(-(((edge - 90) / (40 if edge < 90 else 95)) ** 2)) + 4 * rng.random())
        for edge in edges[:-1]
    ]
    return {
        "edges": edges, "counts": counts, "mean": 104.2, "p50": 96, "p95": 231, "p99": 360,
        "max": 512, "max_length": 512, "truncated": 12,
    }  # fmt: skip


def _operations(queries: int) -> dict[str, Any]:
    pairs = 100 * queries
    return {
        "counts": {
            "input": pairs + 7, "collapsed": 4, "distinct": pairs, "from_store": 0,
            "scored": pairs, "ranked": pairs, "cut": 0, "rejected": 3, "truncated": 12,
            "queries": queries,
        },
        "ms_per_pair": {"mean": 9.5, "p50": 9.1, "p95": 14.0, "p99": 20.1},
        "memory": {"process_mb": 3120.4, "device_mb": 2210.0},
        "pairs_per_s": 166.1,
        "tokens_per_s": 17114.7,
        "padding_share": 0.03,
        "from_store_rate": 0.0,
        "reject_rate": 3 / (pairs + 7),
        "truncated_rate": 12 / pairs,
        "reject_reasons": {"missing_doc": 2, "conflicting_duplicate": 1},
        "timings": {"session": 7.9, "checking": 11.9, "scoring": 625.9, "ranking": 3.6,
                    "total": 652.8},
        "model": {
            "name": "BAAI/bge-reranker-v2-m3",
            "revision": "953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
            "architecture": "XLMRobertaForSequenceClassification",
            "parameters": 568_000_000,
            "precision": "fp16",
        },
    }  # fmt: skip
