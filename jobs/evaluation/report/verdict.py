"""The first screen: one sentence that answers the question, and the few figures to go with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.evaluation.report import words
from jobs.evaluation.report.parts import Cell, Column, Figure, Table, Verdict
from jobs.evaluation.significance import SIGNIFICANT


def verdict(document: Mapping[str, Any]) -> Verdict:
    """Passed or not where there is a gate; otherwise what became of the first measure."""
    outcome = _outcome(document)
    gate = document.get("gate")
    if not gate:
        return outcome
    change = f"{outcome.sentence}{outcome.numbers}."
    rules = gate.get("rules") or []
    failed = [rule for rule in rules if not rule["passed"]]
    if gate["passed"]:
        held = {0: "", 1: ": its one rule holds"}.get(len(rules), f": all {len(rules)} rules hold")
        return Verdict("helped", f"Passed{held}", more=(change, *outcome.more))
    number = f": {len(failed)} of {len(rules)} rules failed" if len(rules) > 1 else ""
    numbers = f". {'; '.join(_failure(rule) for rule in failed)}" if failed else ""
    return Verdict("hurt", f"Not passed{number}", numbers, (change, *outcome.more))


def gate_table(document: Mapping[str, Any]) -> Table | None:
    """Every rule of the gate."""
    rules = (document.get("gate") or {}).get("rules")
    if not rules:
        return None
    columns = (
        Column("rule", number=False), Column("result", number=False), Column("value"),
        Column("limit"), Column("note", number=False),
    )  # fmt: skip
    return Table("Rules", columns, [_rule_row(rule) for rule in rules])


def figures(document: Mapping[str, Any]) -> list[Figure]:
    """The strip: whatever is known of queries, first documents, wins, time and rejects."""
    found = []
    if document.get("queries"):
        unit = "query" if document["queries"] == 1 else "queries"
        found.append(Figure("Judged", words.count(document["queries"]), unit))
    rate = (document.get("moved") or {}).get("top1_change_rate")
    if words.known(rate):
        found.append(
            Figure("New first document", words.share(rate), "of queries", "top-1 change rate")
        )
    found += _won_and_lost(document)
    operations = document.get("operations") or {}
    time = (operations.get("ms_per_pair") or {}).get("mean")
    if words.known(time):
        found.append(Figure("Time", words.amount(time), "ms per pair", "mean"))
    if words.known(operations.get("reject_rate")):
        rejected = (operations.get("counts") or {}).get("rejected")
        detail = words.many(rejected, "row") if words.known(rejected) else ""
        found.append(
            Figure("Rejected", words.share(operations["reject_rate"]), "of input rows", detail)
        )
    return found


def first_measure(document: Mapping[str, Any]) -> str | None:
    """The measure that the verdict is about, if any has a value."""
    values = document.get("reranked") or {}
    return next((name for name in document.get("measures") or [] if name in values), None)


def _outcome(document: Mapping[str, Any]) -> Verdict:
    """What became of the first measure, without the full stop."""
    measure = first_measure(document)
    if measure is None or not document.get("queries"):
        return Verdict("", "No query has a judgement, so no measure could be computed")
    intervals = document.get("intervals") or {}
    after, level = document["reranked"][measure], intervals.get("level", 0.95)
    before = (document.get("first_stage") or {}).get(measure)
    if before is not None:
        test = (document.get("tests") or {}).get(measure) or {}
        interval = (intervals.get("delta") or {}).get(measure)
        return _change(measure, before, after, test, interval, document["queries"], level)
    baseline = document.get("baseline")
    if baseline and measure in baseline["values"]:
        test = (baseline.get("tests") or {}).get(measure) or {}
        interval = (baseline.get("intervals") or {}).get(measure)
        before, queries = baseline["values"][measure], baseline["queries"]
        # Over the queries that both have, which may be fewer than those of the reranked value.
        after = before + (baseline.get("delta") or {}).get(measure, after - before)
        changed = _change(measure, before, after, test, interval, queries, level)
        versus = (
            f"It is compared with {baseline['name']} over {words.queries(queries)}; the first "
            "stage has no order."
        )
        return Verdict(changed.tone, changed.sentence, changed.numbers, (versus, *changed.more))
    ends = (intervals.get("reranked") or {}).get(measure)
    numbers = f" ({_percent(level)} interval {words.span(ends)})" if words.span(ends) else ""
    missing = "There is no first-stage order and no baseline to compare it with."
    return Verdict("", f"{measure} is {words.fixed(after, 3)}", numbers, (missing,))


def _change(
    measure: str,
    before: float,
    after: float,
    test: Mapping[str, Any],
    interval: list[float] | None,
    queries: int,
    level: float,
) -> Verdict:
    """From one value to another; the words claim no more than the test does."""
    delta = after - before
    digits = 3 if abs(delta) >= 0.0005 else 4
    if words.fixed(delta, 4).strip("−") == "0.0000":
        return Verdict("", f"{measure} stayed at {words.fixed(after, 3)}")
    sure = words.significant(test.get("p_holm"))
    verb = "rose" if delta > 0 else "fell"
    sentence = (
        f"{measure} {verb} from {words.fixed(before, digits)} to {words.fixed(after, digits)}"
    )
    numbers = [words.signed(delta, digits)]
    if queries > 1 and words.span(interval):
        numbers.append(f"{_percent(level)} interval {words.span(interval, digits, sign=True)}")
    if "p_holm" in test and words.known(test["p_holm"]):
        sentence += "" if sure else ", which may be chance"
        numbers.append(words.p_equation(test["p_holm"]))
        limit = f"{SIGNIFICANT:g}"
        judged = (
            f"The difference is significant: p is below {limit}"
            if sure
            else f"The difference is not significant: p is not below {limit}"
        )
        more: tuple[str, ...] = (f"{judged} after Holm’s correction for the number of measures.",)
    else:
        more = ()
    if queries == 1:
        more = (*more, "One query says nothing about others.")
    tone = ("helped" if delta > 0 else "hurt") if sure else ""
    return Verdict(tone, sentence, f" ({', '.join(numbers)})", more)


def _failure(rule: Mapping[str, Any]) -> str:
    value, note = rule.get("value"), rule.get("note")
    if not words.known(value):
        return f"{rule['rule']} (no value{f': {note}' if note else ''})"
    return f"{rule['rule']} (is {words.beside(value, rule.get('limit'))})"


def _rule_row(rule: Mapping[str, Any]) -> list[Cell]:
    value, limit, passed = rule.get("value"), rule.get("limit"), rule["passed"]
    return [
        Cell(str(rule["rule"])),
        Cell("✓ passed" if passed else "✗ failed", tone="helped" if passed else "hurt"),
        Cell(words.beside(value, limit)),
        Cell(words.beside(limit, limit)),
        Cell(str(rule.get("note") or "")),
    ]


def _won_and_lost(document: Mapping[str, Any]) -> list[Figure]:
    measure = first_measure(document)
    test = (document.get("tests") or {}).get(measure)
    if not test:
        return []
    numbers = [test["helped"], test["hurt"], test["tied"]]
    total = sum(numbers) or 1
    tones = ("helped", "hurt", "tied")
    return [
        Figure(
            "Helped / hurt / tied",
            " / ".join(words.count(number) for number in numbers),
            "queries",
            f"by {measure}",
            [
                (tone, 100 * number / total)
                for tone, number in zip(tones, numbers, strict=True)
                if number
            ],
        )
    ]


def _percent(level: float) -> str:
    return f"{100 * level:g}%"
