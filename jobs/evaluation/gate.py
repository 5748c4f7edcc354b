"""Rules that a result must pass, so that a scheduler can stop on a bad one.

    nDCG@10 >= 0.60                                  the reranked value
    nDCG@10 first_stage >= 0.40                      the value before reranking
    nDCG@10 delta >= 0                               reranked minus first stage
    nDCG@10 vs baseline >= -0.005 (significant)      reranked minus baseline
    top1_change_rate <= 0.5                          any of `OPERATIONS`

A rule marked `(significant)` fails only if the difference is also significant at
`evaluation.alpha`, after Holm's correction over all measures. A rule fails where its value is not
known, or rests on fewer judgements than `evaluation.min_queries` and `evaluation.min_judged` ask
for. The one exception is a baseline of `mlflow:EXPERIMENT` before the first passing run.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from jobs.config import EvaluationConfig
from jobs.evaluation.measures import parse_measure

Side = Literal["reranked", "first_stage", "delta", "baseline"]

#: Names beside measures, and where their value stands in a document.
OPERATIONS: Final[dict[str, str]] = {
    "top1_change_rate": "moved.top1_change_rate",  # share of queries with a new first document
    "kendall_tau": "moved.kendall_tau.mean",  # mean agreement of both orders
    "rbo": "moved.rbo.mean",  # mean rank-biased overlap of both orders
    "tied_rate": "scores.tied_rate",  # candidates whose score another one of the list has
    "ece": "scores.ece",  # expected calibration error of the probability
    "queries": "queries",  # of the qrels
    "queries_unanswered": "queries_unanswered",  # of the qrels, without any candidate
    "mean_ms_per_pair": "operations.ms_per_pair.mean",  # device time [ms]
    "p50_ms_per_pair": "operations.ms_per_pair.p50",
    "p95_ms_per_pair": "operations.ms_per_pair.p95",
    "p99_ms_per_pair": "operations.ms_per_pair.p99",
    "process_mb": "operations.memory.process_mb",  # most memory of a process that scored [MB]
    "device_mb": "operations.memory.device_mb",  # most memory of tensors on a GPU [MB]
    "pairs_per_s": "operations.pairs_per_s",
    "tokens_per_s": "operations.tokens_per_s",
    "padding_share": "operations.padding_share",  # of what the model was given
    "reject_rate": "operations.reject_rate",  # of the input rows
    "truncated_rate": "operations.truncated_rate",  # of the pairs
    "from_store_rate": "operations.from_store_rate",  # of the pairs
}
_OF_LABELS: Final = frozenset({"ece", "queries", "queries_unanswered"})

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_SIDES: Final[dict[str, Side]] = {
    "": "reranked", "first_stage": "first_stage", "delta": "delta", "vs baseline": "baseline",
}  # fmt: skip
_RULE: Final = re.compile(
    r"(?P<name>\S+?(?:\([^()]*\)\S*?)?)\s*(?P<side>first_stage|delta|vs\s+baseline)?\s*"
    r"(?P<sign>>=|<=|>|<)\s*"
    r"(?P<limit>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<significant>\(significant\))?",
    re.ASCII,
)
_DECIMAL_COMMA: Final = re.compile(r"\d,\d+\s*(\(significant\))?$")


@dataclass(frozen=True)
class Rule:
    """One rule; `measure` is None where it is about one of `OPERATIONS`."""

    text: str
    name: str
    measure: str | None
    side: Side
    sign: str
    limit: float
    significant: bool

    @property
    def needs_judgements(self) -> bool:
        """Whether the value is unknown without qrels or labels."""
        return self.measure is not None or self.name in _OF_LABELS


def parse_rule(text: str) -> Rule:
    """Read one rule.

    Raises:
        ValueError: naming the rule, what is supported and the remedy.
    """
    words = " ".join(text.split())
    match = _RULE.fullmatch(words)
    if match is None:
        remedy = (
            "write a number as 0.3"
            if _DECIMAL_COMMA.search(words)
            else "write NAME [first_stage|delta|vs baseline] {>=|<=|>|<} NUMBER [(significant)], "
            "for example 'nDCG@10 delta >= 0'"
        )
        raise ValueError(f"cannot read {text!r}; {remedy}")
    side = _SIDES[" ".join((match["side"] or "").split())]
    significant, name, measure = bool(match["significant"]), match["name"], None
    if name in OPERATIONS:
        if side != "reranked":
            raise ValueError(f"rule {text!r}: {name} has one value only; leave out {side}")
    else:
        try:
            measure = parse_measure(name)
        except ValueError as error:
            raise ValueError(f"rule {text!r}: {error}; or one of {', '.join(OPERATIONS)}") from None
    if significant and side not in ("delta", "baseline"):
        raise ValueError(
            f"rule {text!r}: only a difference can be significant; write 'delta' or 'vs baseline'"
        )
    if significant and (measure or "").startswith("Judged"):
        raise ValueError(
            f"rule {text!r}: {measure} counts judgements, whose difference is not tested; leave "
            "out (significant)"
        )
    return Rule(words, name, measure, side, match["sign"], float(match["limit"]), significant)


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


def judge(
    rules: Iterable[Rule], document: Mapping[str, Any], config: EvaluationConfig
) -> dict[str, Any]:
    """Hold an evaluation against the rules.

    Args:
        rules: what has to hold.
        document: an evaluation, see `jobs.evaluation.document`.
        config: `alpha`, `min_queries`, `min_judged`.

    Returns:
        `passed`, and `rules` with `rule`, `value`, `limit`, `passed` and `note` of each.
    """
    found = [_judge(rule, document, config) for rule in rules]
    return {"passed": all(row["passed"] for row in found), "rules": found}


def _judge(rule: Rule, document: Mapping[str, Any], config: EvaluationConfig) -> dict[str, Any]:
    row = {"rule": rule.text, "value": None, "limit": rule.limit, "passed": False, "note": ""}
    baseline = document.get("baseline")
    if rule.side == "baseline" and baseline is None:
        # The first run of an experiment; somebody has to begin.
        return {**row, "passed": True, "note": "no passing run to compare with yet"}
    holder = baseline if rule.side == "baseline" and baseline else document
    value = _value(rule, document, holder)
    if value is None:
        return {**row, "note": "no value is known"}
    holds, notes = _COMPARE[rule.sign](value, rule.limit), []
    if rule.significant:
        p = holder["tests"][rule.measure]["p_holm"]
        notes.append(f"p = {p:.3g} after Holm")
        holds = holds or p >= config.alpha
    if rule.measure is not None and (weak := _too_few(holder, config)):
        holds = False
        notes.append(weak)
    return {**row, "value": value, "passed": holds, "note": "; ".join(notes)}


def _too_few(holder: Mapping[str, Any], config: EvaluationConfig) -> str:
    """Why a value rests on too little to pass; empty if it does not."""
    queries, judged = holder["queries_judged"], holder["judged"]
    shared = "shared " if holder.get("only_baseline") is not None else ""
    found = []
    if queries < config.min_queries:
        unit = "query" if queries == 1 else "queries"
        found.append(
            f"rests on {queries} judged {shared}{unit}, evaluation.min_queries is "
            f"{config.min_queries}"
        )
    if judged < config.min_judged:
        found.append(
            f"{judged:.2%} of the first ten documents are judged, evaluation.min_judged is "
            f"{config.min_judged:.2%}"
        )
    return "; ".join(found)


def _value(rule: Rule, document: Mapping[str, Any], holder: Mapping[str, Any]) -> float | None:
    found: Any = document
    if rule.measure is not None:
        part = holder.get("delta" if rule.side == "baseline" else rule.side) or {}
        found = part.get(rule.measure)
    else:
        for key in OPERATIONS[rule.name].split("."):
            found = (found or {}).get(key)
    return None if found is None else float(found)
