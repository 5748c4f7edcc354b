"""Made-up documents as the report is given them: an evaluation of any number of queries, a tuning.

Their keys are those of `jobs.evaluation.document` and `jobs.tune.document`.
"""

from __future__ import annotations

import math
import random
from typing import Any

MEASURES = ["nDCG@10", "RR(rel=2)@10", "Success@1", "Judged@10"]
BEFORE = dict(zip(MEASURES, [0.5058, 0.8233, 0.7442, 0.9512], strict=True))
AFTER = dict(zip(MEASURES, [0.5732, 0.8876, 0.8140, 0.9488], strict=True))
DELTA = {name: AFTER[name] - BEFORE[name] for name in MEASURES}
_HOLM = [0.0048, 0.0930, 0.4280, 0.6800]


def make_document(queries: int = 43, **changes: Any) -> dict[str, Any]:
    """Return blocks that belong together; `changes` replaces some of them."""
    rng = random.Random(queries)
    document = {
        "run_id": "3f0c8cc590ea6943098590ac3d245e6e",
        "started": "2026-11-22T02:00:00+01:00",
        "name": "reranked",
        "measures": list(MEASURES), "queries": queries, "queries_unanswered": 0,
        "queries_without_relevant": 1, "queries_only_in_run": 157,
        "first_stage_order": "retrieval_score", "first_stage": BEFORE, "reranked": AFTER,
        "delta": DELTA, "ceiling": {"nDCG@10": 0.8312, "RR(rel=2)@10": 1.0, "Success@1": 1.0},
        "intervals": {
            "level": 0.95, "first_stage": _around(BEFORE, 0.053),
            "reranked": _around(AFTER, 0.053), "delta": _around(DELTA, 0.047),
        },
        "tests": _tests(queries), "baseline": None, "systems": [],
        "moved": _moved(queries, rng), "per_query": _per_query(queries, rng),
        "slices": [{"column": "language", "rows": _slices(["en", "zh", "de"], queries)}],
        "scores": _scores(),
        "lengths": {
            "edges": [16.0 * place for place in range(33)],
            "counts": [round(900 * math.exp(-(((place - 6) / 5) ** 2))) for place in range(32)],
            "mean": 104.2, "p50": 96, "p95": 231, "p99": 360, "max": 512, "max_length": 512,
            "truncated": 12,
        },
        "operations": _operations(100 * queries),
        "warnings": [], "gate": None, "examples": [],
        "config": {"model": {"max_length": 512, "device": None}, "input": {"path": 50 * "part-"}},
        "versions": {"python": "3.11.2", "spark": "4.1.0"},
    }  # fmt: skip
    return document | changes


def make_full(**changes: Any) -> dict[str, Any]:
    """Return a document with every block: a failed gate, a baseline, four systems, examples."""
    values = {name: value - 0.021 for name, value in AFTER.items()}
    baseline = {
        "name": "bge-reranker-base", "queries": 117, "only_here": 3, "only_baseline": 2,
        "values": values, "reranked": AFTER, "delta": dict.fromkeys(values, 0.021),
        "intervals": _around(dict.fromkeys(values, 0.021), 0.013), "tests": _tests(117),
    }  # fmt: skip

    def versus(delta: float, p: float) -> dict[str, Any]:
        return {name: {"delta": delta, "p": p / 2, "p_holm": p} for name in MEASURES[:3]}

    systems = [
        {"name": "first stage", "values": BEFORE, "versus": versus(-0.046, 0.01)},
        {"name": "bge-reranker-base", "values": values, "versus": None, "ms_per_pair": 7.25},
        {
            "name": "reranked",
            "values": AFTER,
            "versus": versus(0.021, 0.03),
            "ms_per_pair": 9.5,
            "cost": 12.345,
        },
        {"name": "MiniLM", "values": dict.fromkeys(AFTER, 0.51), "versus": versus(0.017, 0.4)},
    ]
    warnings = ["All scores are equal: the order is that of the document ids."]
    whole = {"baseline": baseline, "systems": systems, "warnings": warnings}
    whole |= {"gate": make_gate(passed=False), "examples": _examples()}
    return make_document(120) | whole | changes


def make_gate(*, passed: bool) -> dict[str, Any]:
    """Return three rules, of which two fail where it is not passed."""
    rules = [
        {"rule": "nDCG@10 >= 0.60", "value": 0.5732, "limit": 0.6, "passed": passed, "note": ""},
        {"rule": "RR(rel=2)@10 delta >= 0", "value": 0.0643, "limit": 0.0, "passed": True,
         "note": "p = 0.093 after Holm"},
        {"rule": "p95_ms_per_pair <= 12", "value": 11.2 if passed else None, "limit": 12,
         "passed": passed, "note": "nothing was scored"},
    ]  # fmt: skip
    return {"passed": passed, "rules": rules}


def make_tuning(*, recommended: bool = True) -> dict[str, Any]:
    """Return two precisions by three lengths, and one setting that failed."""
    rows: list[dict[str, Any]] = []
    for precision, speed, tau in (("fp32", 21.0, 1.0), ("bf16", 47.0, 0.984)):
        for length, loss in ((512, 0.0), (256, 0.004), (128, 0.05)):
            rate = speed * (512 / length) ** 0.4
            rows.append(
                {
                    "engine": precision, "backend": "torch", "precision": precision,
                    "max_length": length, "max_tokens": 16384, "max_pairs": 1024,
                    "outcome": "ok", "runs": 3, "pairs_per_s": rate,
                    "ms_per_pair": {"p50": 1000 / rate, "p95": 1500 / rate},
                    "memory_mb": 1480.2, "device_memory_mb": None, "kendall_tau": tau - loss,
                    "ndcg": 0.731 - loss / 2, "ndcg_delta": -loss / 2, "pareto": tau < 1,
                    "recommended": False,
                }
            )  # fmt: skip
    measured = {"pairs_per_s", "ms_per_pair", "kendall_tau", "ndcg", "ndcg_delta", "memory_mb"}
    failed = {key: value for key, value in rows[0].items() if key not in measured}
    rows.append(failed | {"max_tokens": 65536, "outcome": "out_of_memory"})
    rows[4]["recommended"] = recommended
    percentiles = {"mean": 98.2, "p50": 90, "p75": 130, "p90": 210, "p95": 245, "p99": 330}
    cuts = [
        {"max_length": n, "share_cut": cut, "tokens_per_pair": 98 * cost, "cost": cost,
         "slot_hours": 6 * cost if recommended else None}
        for n, cut, cost in ((128, 0.26, 0.81), (256, 0.04, 0.97), (512, 0.0, 1.0))
    ]  # fmt: skip
    return {
        "run_id": "3f0c8cc590ea6943098590ac3d245e6e", "started": "2026-11-22T01:00:00+00:00",
        "config": {"tune": {"min_tau": 0.97, "max_loss": 0.005}}, "versions": {"torch": "2.13.0"},
        "model": {"name": "BAAI/bge-reranker-v2-m3"}, "device": "cpu-bf16", "task_slots": 4,
        "counts": {"distinct": 1_000_000, "sampled": 1000, "measured_on": 256}, "queries": 16,
        "lengths": {"sampled": 1000, **percentiles, "max": 512, "cuts": cuts},
        "reference": "fp32 at max_length 512", "reference_at": 0, "rows": rows,
    }  # fmt: skip


def _around(values: dict[str, float], width: float) -> dict[str, list[float]]:
    return {name: [value - width, min(value + width, 1.0)] for name, value in values.items()}


def _tests(queries: int) -> dict[str, Any]:
    helped, hurt = round(0.58 * queries), round(0.23 * queries)
    wins = {"helped": helped, "hurt": hurt, "tied": queries - helped - hurt}
    method = "paired randomisation test, 9,999 resamples"
    return {
        name: {"p": holm / 2, "p_holm": holm, "effect_size": 0.3, "method": method, **wins}
        for name, holm in zip(MEASURES, _HOLM, strict=True)
    }


def _moved(queries: int, rng: random.Random) -> dict[str, Any]:
    histogram = [
        [low, round(queries * (20 * math.exp(-(((low + 5) / 30) ** 2)) + rng.random()))]
        for low in range(-90, 90, 10)
    ]
    former = {"1-10": 0.49, "11-20": 0.19, "21-50": 0.2, "51-100": 0.12, "beyond 100": 0.0}
    rows = [{"from": name, "count": round(10 * queries * part)} for name, part in former.items()]
    return {
        "queries_compared": queries, "top1_change_rate": 0.907, "bin_width": 10,
        "rank_change": {"mean_absolute": 18.2, "p5": -40, "p95": 35, "histogram": histogram},
        "kendall_tau": {"mean": 0.31, "p5": -0.1, "p50": 0.3, "p95": 0.6},
        "rbo": {"mean": 0.42, "p5": 0.11, "p50": 0.4, "p95": 0.71, "persistence": 0.9},
        "flow": {"k": 10, "rows": rows},
        "truncation": {"pairs": 3 * queries, "queries": queries // 3,
                       "queries_in_top": queries // 6, "k": 10},
    }  # fmt: skip


def _per_query(queries: int, rng: random.Random) -> dict[str, Any]:
    gains = [rng.betavariate(1.2, 4) for _ in range(round(0.58 * queries))]
    losses = [-rng.betavariate(1.1, 6) for _ in range(round(0.23 * queries))]
    ties = [0.0] * (queries - len(gains) - len(losses))

    def rows(chosen: list[float]) -> list[dict[str, Any]]:
        return [
            {"query_id": f"{1037798 + 97 * place}", "session": f"s{place}",
             "before": (1 - d) / 2, "after": (1 + d) / 2, "delta": d}
            for place, d in enumerate(chosen[:20])
        ]  # fmt: skip

    return {
        "measure": "nDCG@10",
        "differences": sorted(gains + ties + losses, reverse=True)[:1000],
        "most_helped": rows(sorted(gains, reverse=True)),
        "most_hurt": rows(sorted(losses)),
    }


def _slices(names: list[str], queries: int) -> list[dict[str, Any]]:
    deltas = [dict.fromkeys(MEASURES, 0.09 - 0.06 * place) for place in range(len(names))]
    return [
        {"value": name, "queries": queries // len(names), "first_stage": BEFORE, "delta": delta,
         "reranked": {m: BEFORE[m] + delta[m] for m in MEASURES}, "intervals": _around(delta, 0.05),
         "p_holm": dict.fromkeys(MEASURES, min(1.0, 0.003 * 20**place))}
        for place, (name, delta) in enumerate(zip(names, deltas, strict=True))
    ]  # fmt: skip


def _scores() -> dict[str, Any]:
    edges = [-11 + 0.5 * place for place in range(45)]

    def bell(middle: float, width: float, size: float) -> list[int]:
        return [round(size * math.exp(-(((x + 0.25 - middle) / width) ** 2))) for x in edges[:-1]]

    reliability = [
        {"low": at / 10, "high": (at + 1) / 10, "pairs": pairs,
         "mean_probability": at / 10 + 0.05 if pairs else None,
         "share_relevant": 0.03 + 0.07 * at if pairs else None}
        for at, pairs in enumerate([1210, 240, 150, 96, 80, 71, 0, 60, 92, 310])
    ]  # fmt: skip
    return {
        "edges": edges, "relevant": bell(3, 3, 60), "not_relevant": bell(-5, 3.5, 210),
        "unjudged": bell(-7, 2.5, 400), "reliability": reliability, "ece": 0.2134,
        "judged_pairs": 2309, "tied_rate": 0.0123,
    }  # fmt: skip


def _operations(pairs: int) -> dict[str, Any]:
    return {
        "counts": {"input": pairs + 7, "collapsed": 4, "distinct": pairs, "from_store": 0,
                   "scored": pairs, "ranked": pairs, "cut": 0, "rejected": 3, "truncated": 12},
        "ms_per_pair": {"mean": 9.5, "p50": 9.1, "p95": 14.0, "p99": 20.1},
        "memory": {"process_mb": 3120.4, "device_mb": 2210.0},
        "pairs_per_s": 166.1, "tokens_per_s": 17114.7, "padding_share": 0.03,
        "from_store_rate": 0.0, "reject_rate": 3 / (pairs + 7), "truncated_rate": 12 / pairs,
        "reject_reasons": {"missing_doc": 2, "conflicting_duplicate": 1},
        "timings": {"session": 7.9, "scoring": 625.9, "total": 652.8},
        "model": {"name": "BAAI/bge-reranker-v2-m3", "revision": "953dc6f6f85a1b2dbfca4c34a2796",
                  "architecture": "XLMRobertaForSequenceClassification",
                  "parameters": 568_000_000, "precision": "fp16"},
    }  # fmt: skip


def _examples() -> list[dict[str, Any]]:
    texts = {"d3": "I would like to cancel my subscription.", "d8": "Open Settings. " * 40}
    before = [{"rank": 1, "doc_id": "d3", "label": 0, "text": texts["d3"]},
              {"rank": 2, "doc_id": "d8", "label": None, "text": texts["d8"]}]  # fmt: skip
    after = [row | {"rank": 3 - row["rank"]} for row in reversed(before)]
    chinese = [{"rank": 1, "doc_id": "头孢-17", "label": 3, "text": "普通感冒一般不需要吃头孢。"}]
    return [
        {"query_id": "q1", "query": "cancel subscription", "before": before, "after": after},
        {"query_id": "q2", "query": "感冒了要不要吃头孢", "before": chinese, "after": chinese},
    ]
