"""The first screen of a page: one sentence that answers the question, and what supports it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.report.formatting import beside, fixed, known, many, p_value, signed, span
from jobs.evaluation.significance import SIGNIFICANT

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The headline: a sentence, the rest of it in lighter type, and further sentences."""

    tone: str  # "helped", "hurt" or ""
    sentence: str
    rest: str = ""
    more: Sequence[str] = ()


def verdict(document: Document) -> Verdict:
    """Return whether the gate passed, if there is one, and how the first measure changed."""
    outcome, gate = _outcome(document), document.get("gate")
    if not gate:
        return outcome
    more = (f"{outcome.sentence}{outcome.rest}.", *outcome.more)
    rules = gate.get("rules") or []
    if gate["passed"]:
        held = ": its one rule holds" if len(rules) == 1 else f": all {len(rules)} rules hold"
        return Verdict("helped", f"Passed{held if rules else ''}", more=more)
    failed = [_failure(rule) for rule in rules if not rule["passed"]]
    number = f": {len(failed)} of {len(rules)} rules failed" if len(rules) > 1 else ""
    return Verdict("hurt", f"Not passed{number}", f". {'; '.join(failed)}" if failed else "", more)


def first_measure(document: Document) -> str | None:
    """Return the measure that the verdict is about, if any has a value."""
    values = document.get("reranked") or {}
    return next((name for name in document.get("measures") or [] if name in values), None)


def _outcome(document: Document) -> Verdict:
    measure, queries = first_measure(document), document.get("queries")
    if measure is None or not queries:
        return Verdict("", "No query has a judgement, so no measure could be computed")
    intervals, baseline = document.get("intervals") or {}, document.get("baseline") or {}
    level = f"{100 * intervals.get('level', 0.95):g}% interval"
    before, after = (document.get("first_stage") or {}).get(measure), document["reranked"][measure]
    ends, tests = intervals.get("delta"), document.get("tests")
    more: list[str] = []
    if baseline:
        shared = f"{many(baseline['queries'], 'query')} that both rank"
        more.append(f"The comparison with {baseline['name']} is over the {shared}.")
    if before is None and measure in baseline.get("values", {}):
        # Over the shared queries, which may be fewer than those of the reranked value.
        before = baseline["values"][measure]
        after = before + baseline["delta"][measure]
        ends, tests = baseline.get("intervals"), baseline.get("tests")
    if before is None:
        written = span((intervals.get("reranked") or {}).get(measure))
        missing = "There is no first-stage order and no baseline to compare it with."
        rest = f" ({level} {written})" if written else ""
        return Verdict("", f"{measure} is {fixed(after, 3)}", rest, (missing,))
    if queries == 1:
        more.append("One query says nothing of others.")
        ends = None
    p = ((tests or {}).get(measure) or {}).get("p_holm")
    return _change(measure, before, after, (level, (ends or {}).get(measure)), p, more)


def _change(
    measure: str, before: float, after: float, interval: tuple[str, Any], p: Any, more: list[str]
) -> Verdict:
    """How the measure changed; the words claim no more than the test does."""
    delta = after - before
    digits = 3 if abs(delta) >= 0.0005 else 4
    if abs(delta) < 0.00005:
        return Verdict("", f"{measure} stayed at {fixed(after, 3)}", more=more)
    verb = "rose" if delta > 0 else "fell"
    sentence = f"{measure} {verb} from {fixed(before, digits)} to {fixed(after, digits)}"
    numbers, tone = signed(delta, digits), ""
    if ends := span(interval[1], digits, sign=True):
        numbers += f", {interval[0]} {ends}"
    if known(p):
        numbers += ", " + ("p " if p < 0.001 else "p = ").replace(" ", "\u00a0") + p_value(p)
        no = "not " if p >= SIGNIFICANT else ""
        judged = f"The difference is {no}significant: p is {no}below {SIGNIFICANT:g} after Holm’s "
        more = [judged + "correction for the number of measures.", *more]
        if no:
            sentence += ", which may be chance"
        else:
            tone = "helped" if delta > 0 else "hurt"
    return Verdict(tone, sentence, f" ({numbers})", more)


def _failure(rule: Document) -> str:
    value = [f"is {beside(rule['value'], rule.get('limit'))}"] if known(rule.get("value")) else []
    note = [str(rule["note"])] if rule.get("note") else []
    return f"{rule['rule']} ({'; '.join(value + note) or 'no value'})"
