"""Rules that a result must pass, so that a scheduler can stop on a bad one.

    nDCG@10 >= 0.60                                  the reranked value
    nDCG@10 first_stage >= 0.40                      the value before reranking
    nDCG@10 delta >= 0                               reranked minus first stage
    nDCG@10 vs baseline >= -0.005 (significant)      reranked minus baseline
    top1_change_rate <= 0.5                          any of `OPERATIONS`

A rule marked `(significant)` fails only if the difference is also significant at
`evaluation.alpha`, after Holm's correction over all measures. A rule whose value is not known
fails: a gate that passes what it cannot see is none. The one exception is a baseline of
`mlflow:EXPERIMENT` before the first passing run.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from jobs.evaluation.measures import Measure, parse_measure

Side = Literal["reranked", "first_stage", "delta", "baseline"]

#: Names beside measures, and what they mean.
OPERATIONS: Final[dict[str, str]] = {
    "top1_change_rate": "share of queries with a new first document",
    "kendall_tau": "mean agreement of both orders",
    "rbo": "mean rank-biased overlap of both orders",
    "ece": "expected calibration error of the probability",
    "queries": "queries of the qrels",
    "queries_unanswered": "queries of the qrels without any candidate",
    "mean_ms_per_pair": "device time per pair [ms]",
    "p50_ms_per_pair": "its median [ms]",
    "p95_ms_per_pair": "its 95th percentile [ms]",
    "p99_ms_per_pair": "its 99th percentile [ms]",
    "process_mb": "most memory of a process that scored [MB]",
    "device_mb": "most memory of tensors on a GPU [MB]",
    "pairs_per_s": "pairs scored in a second",
    "tokens_per_s": "tokens scored in a second",
    "padding_share": "share of padding in what the model was given",
    "reject_rate": "share of input rows rejected",
    "truncated_rate": "share of pairs cut to max_length",
    "from_store_rate": "share of pairs whose score was known",
}

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_SIDES: Final[dict[str, Side]] = {
    "": "reranked", "first_stage": "first_stage", "delta": "delta", "vs baseline": "baseline",
}  # fmt: skip
_RULE: Final = re.compile(
    r"(?P<name>\S+?)\s*(?P<side>first_stage|delta|vs\s+baseline)?\s*(?P<sign>>=|<=|>|<)\s*"
    r"(?P<limit>[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*(?P<significant>\(significant\))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Rule:
    """One rule; `measure` is None where it is about one of `OPERATIONS`."""

    text: str
    name: str
    measure: Measure | None
    side: Side
    sign: str
    limit: float
    significant: bool


def parse_rule(text: str) -> Rule:
    """Read one rule.

    Raises:
        ValueError: naming the rule, what is supported and the remedy.
    """
    words = " ".join(text.split())
    match = _RULE.fullmatch(words)
    if match is None:
        raise ValueError(
            f"cannot read rule {text!r}; write NAME [first_stage|delta|vs baseline] "
            "{>=|<=|>|<} NUMBER [(significant)], for example 'nDCG@10 delta >= 0'"
        )
    side = _SIDES[" ".join((match["side"] or "").split())]
    significant = bool(match["significant"])
    measure = None
    if match["name"] in OPERATIONS:
        if side != "reranked":
            raise ValueError(f"rule {text!r}: {match['name']} has one value only; leave out {side}")
    else:
        try:
            measure = parse_measure(match["name"])
        except ValueError as error:
            raise ValueError(f"rule {text!r}: {error}; or one of {', '.join(OPERATIONS)}") from None
    if significant and side not in ("delta", "baseline"):
        raise ValueError(
            f"rule {text!r}: only a difference can be significant; write 'delta' or 'vs baseline'"
        )
    if significant and measure is not None and measure.name == "Judged":
        raise ValueError(
            f"rule {text!r}: {measure} counts judgements, whose difference is not tested; leave "
            "out (significant)"
        )
    limit = float(match["limit"])
    return Rule(words, match["name"], measure, side, match["sign"], limit, significant)


def parse_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Read several rules; all errors in one ValueError."""
    rules, errors = [], []
    for text in texts:
        try:
            rules.append(parse_rule(text))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("\n".join(errors))
    return tuple(rules)


def judge(rules: Iterable[Rule], document: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """Hold an evaluation against the rules.

    Args:
        rules: what has to hold.
        document: an evaluation, see `jobs.evaluation.document`.
        alpha: chance of a false alarm that `(significant)` rules accept.

    Returns:
        `passed`, and `rules` with `rule`, `value`, `limit`, `passed` and `note` of each.
    """
    found = [_judge(rule, document, alpha) for rule in rules]
    return {"passed": all(row["passed"] for row in found), "rules": found}


def _judge(rule: Rule, document: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    value = _value(rule, document)
    if rule.side == "baseline" and document.get("baseline") is None:
        # The first run of an experiment; somebody has to begin.
        note = "no passing run to compare with yet"
        return {"rule": rule.text, "value": None, "limit": rule.limit, "passed": True, "note": note}
    holds = value is not None and _COMPARE[rule.sign](value, rule.limit)
    note = "" if value is not None else "no value is known"
    if value is not None and rule.significant:
        p = _tests(rule, document)["p_holm"]
        note = f"p = {p:.3g} after Holm"
        holds = holds or p >= alpha
    return {"rule": rule.text, "value": value, "limit": rule.limit, "passed": holds, "note": note}


def _value(rule: Rule, document: Mapping[str, Any]) -> float | None:
    if rule.measure is None:
        return _operation(rule.name, document)
    holder = document.get("baseline") if rule.side == "baseline" else document
    part = (holder or {}).get("delta" if rule.side == "baseline" else rule.side) or {}
    return part.get(str(rule.measure))


def _tests(rule: Rule, document: Mapping[str, Any]) -> Mapping[str, Any]:
    holder = document["baseline"] if rule.side == "baseline" else document
    tests: Mapping[str, Any] = holder["tests"][str(rule.measure)]
    return tests


def _operation(name: str, document: Mapping[str, Any]) -> float | None:
    moved, operations = document.get("moved") or {}, document.get("operations") or {}
    if name.endswith("_ms_per_pair"):
        return (operations.get("ms_per_pair") or {}).get(name.removesuffix("_ms_per_pair"))
    if name in ("process_mb", "device_mb"):
        return (operations.get("memory") or {}).get(name)
    if name in ("kendall_tau", "rbo"):
        return (moved.get(name) or {}).get("mean")
    if name == "ece":
        return (document.get("scores") or {}).get("ece")
    holders = (moved, operations, document)
    return next((holder[name] for holder in holders if holder.get(name) is not None), None)
