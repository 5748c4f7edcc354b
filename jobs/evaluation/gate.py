"""What is asked of an evaluation, and the rules that its result must pass.

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

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from jobs.config import EvaluationConfig, ReportConfig
from jobs.evaluation.measures import ADDED, FACTS, parse_measure
from jobs.runtime.errors import ErrorCollector

_T = TypeVar("_T")

REGISTERED: Final = "mlflow:"  # prefix of a baseline that is looked up in an experiment
#: Columns of the table per query, which no slice can be named like.
RESERVED: Final = frozenset({"query_id", *ADDED, *FACTS})

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

_COMPARE: Final = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_RULE: Final = re.compile(
    r"(?P<name>\S+?(?:\([^()]*\)\S*?)?)\s*(?P<side>first_stage|delta|vs baseline)?\s*"
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
    side: str  # "reranked", "first_stage", "delta" or "baseline"
    sign: str
    limit: float
    significant: bool

    @property
    def needs_judgements(self) -> bool:
        """Whether the value is unknown without qrels or labels."""
        return self.measure is not None or self.name in _OF_LABELS


@dataclass(frozen=True)
class Plan:
    """What to answer: measures, those of the rules included, the rules, and their settings."""

    measures: tuple[str, ...]
    rules: tuple[Rule, ...]
    config: EvaluationConfig
    examples: int

    @property
    def needs_judgements(self) -> list[str]:
        """Rules and keys that nothing can answer without qrels or labels."""
        asked = [f"rule {rule.text!r}" for rule in self.rules if rule.needs_judgements]
        return asked + (["evaluation.baseline"] if self.config.baseline else [])


def make_plan(config: EvaluationConfig, report: ReportConfig) -> Plan:
    """Read measures and rules, before any work starts.

    Raises:
        RefusedError: with everything that cannot be read.
    """
    errors = ErrorCollector()

    def read(key: str, parse: Callable[[str], _T]) -> list[_T]:
        found = []
        for text in getattr(config, key):
            try:
                found.append(parse(text))
            except ValueError as error:
                errors.add(f"evaluation.{key}: {error}")
        return found

    measures, rules = read("metrics", parse_measure), read("gate", parse_rule)
    if not config.metrics:
        errors.add("evaluation.metrics is empty; name at least one, for example nDCG@10")
    needs = [rule.text for rule in rules if rule.side == "baseline"]
    if needs and not config.baseline:
        compare = "needs something to compare with; set evaluation.baseline"
        errors.add(f"evaluation.gate: {needs[0]!r} {compare}")
    if config.baseline == REGISTERED:
        errors.add("evaluation.baseline names no experiment; write mlflow:EXPERIMENT")
    for name in sorted(RESERVED & set(config.slices)):
        errors.add(f"evaluation.slices: {name} is a column of the table per query; rename yours")
    errors.raise_if_any()
    measures += [rule.measure for rule in rules if rule.measure is not None]
    return Plan(tuple(dict.fromkeys(measures)), tuple(rules), config, report.examples)


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
    name, significant = match["name"], bool(match["significant"])
    side = (match["side"] or "reranked").removeprefix("vs ")
    try:
        measure = None if name in OPERATIONS else parse_measure(name)
    except ValueError as error:
        raise ValueError(f"rule {text!r}: {error}; or one of {', '.join(OPERATIONS)}") from None
    wrong = ""
    if measure is None and side != "reranked":
        wrong = f"{name} has one value only; leave out {side}"
    elif significant and side not in ("delta", "baseline"):
        wrong = "only a difference can be significant; write 'delta' or 'vs baseline'"
    elif significant and (measure or "").startswith("Judged"):
        wrong = (f"{measure} counts judgements, whose difference is not tested; leave out "
                 "(significant)")  # fmt: skip
    if wrong:
        raise ValueError(f"rule {text!r}: {wrong}")
    return Rule(words, name, measure, side, match["sign"], float(match["limit"]), significant)


def judge(
    rules: Iterable[Rule], document: Mapping[str, Any], config: EvaluationConfig
) -> dict[str, Any]:
    """Return `passed`, and `rules` with `rule`, `value`, `limit`, `passed` and `note` of each.

    Args:
        rules: what has to hold.
        document: an evaluation, see `jobs.evaluation.document`.
        config: `alpha`, `min_queries`, `min_judged`.
    """
    found = [_judge(rule, document, config) for rule in rules]
    return {"passed": all(row["passed"] for row in found), "rules": found}


def _judge(rule: Rule, document: Mapping[str, Any], config: EvaluationConfig) -> dict[str, Any]:
    row = {"rule": rule.text, "value": None, "limit": rule.limit, "passed": False, "note": ""}
    holder: Any = document.get("baseline") if rule.side == "baseline" else document
    if holder is None:
        # The first run of an experiment; somebody has to begin.
        return {**row, "passed": True, "note": "no passing run to compare with yet"}
    if rule.measure is None:
        value: Any = document
        for key in OPERATIONS[rule.name].split("."):
            value = (value or {}).get(key)
    else:
        part = "delta" if rule.side == "baseline" else rule.side
        value = (holder.get(part) or {}).get(rule.measure)
    if value is None:
        return {**row, "note": "no value is known"}
    holds, notes = _COMPARE[rule.sign](value, rule.limit), []
    if rule.significant:
        p = holder["tests"][rule.measure]["p_holm"]
        notes.append(f"p = {p:.3g} after Holm")
        holds = holds or p >= config.alpha
    if rule.measure is not None:
        weak = _too_few(holder, config)
        notes, holds = notes + weak, holds and not weak
    return {**row, "value": float(value), "passed": holds, "note": "; ".join(notes)}


def _too_few(holder: Mapping[str, Any], config: EvaluationConfig) -> list[str]:
    """Why a value rests on too little to pass."""
    queries, judged = holder["queries_judged"], holder["judged"]
    reasons = []
    if queries < config.min_queries:
        shared = "shared " if "only_baseline" in holder else ""
        reasons.append(
            f"rests on {queries} judged {shared}{'query' if queries == 1 else 'queries'}, "
            f"evaluation.min_queries is {config.min_queries}"
        )
    if judged < config.min_judged:
        reasons.append(
            f"{judged:.2%} of the first ten documents are judged, evaluation.min_judged is "
            f"{config.min_judged:.2%}"
        )
    return reasons
