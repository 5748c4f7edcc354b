"""What an evaluation has to answer, checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from jobs.config import EvaluationConfig, ReportConfig
from jobs.evaluation.gate import Rule, parse_rules
from jobs.evaluation.measures import Measure, parse_measures
from jobs.evaluation.study import RESERVED
from jobs.runtime.errors import RefusedError

REGISTERED: Final = "mlflow:"  # prefix of a baseline that is looked up in an experiment


@dataclass(frozen=True)
class Plan:
    """Measures, those of the rules included, and the rules."""

    measures: tuple[Measure, ...]
    rules: tuple[Rule, ...]
    slices: tuple[str, ...]
    alpha: float
    baseline: str | None
    examples: int


def make_plan(config: EvaluationConfig, report: ReportConfig) -> Plan:
    """Read measures and rules.

    Raises:
        RefusedError: with everything that cannot be read.
    """
    findings: list[str] = []
    measures: tuple[Measure, ...] = ()
    rules: tuple[Rule, ...] = ()
    try:
        measures = parse_measures(config.metrics)
    except ValueError as error:
        findings += [f"evaluation.metrics: {line}" for line in str(error).splitlines()]
    try:
        rules = parse_rules(config.gate)
    except ValueError as error:
        findings += [f"evaluation.gate: {line}" for line in str(error).splitlines()]
    if not config.metrics:
        findings.append("evaluation.metrics is empty; name at least one, for example nDCG@10")
    needs = [rule.text for rule in rules if rule.side == "baseline"]
    if needs and not config.baseline:
        findings.append(
            f"evaluation.gate: {needs[0]!r} needs something to compare with; set "
            "evaluation.baseline"
        )
    if config.baseline and not config.baseline.removeprefix(REGISTERED):
        findings.append("evaluation.baseline names no experiment; write mlflow:EXPERIMENT")
    findings += [
        f"evaluation.slices: {name} is a column of the table per query; rename yours"
        for name in sorted(RESERVED & set(config.slices))
    ]
    if findings:
        raise RefusedError(findings)
    extra = [rule.measure for rule in rules if rule.measure is not None]
    return Plan(
        measures=tuple(dict.fromkeys([*measures, *extra])),
        rules=rules,
        slices=tuple(dict.fromkeys(config.slices)),
        alpha=config.alpha,
        baseline=config.baseline,
        examples=report.examples,
    )
