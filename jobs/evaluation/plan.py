"""What an evaluation has to answer, checked before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from jobs.config import EvaluationConfig, ReportConfig
from jobs.evaluation.gate import Rule, parse_rules
from jobs.evaluation.measures import parse_measures
from jobs.evaluation.run import RESERVED
from jobs.runtime.errors import RefusedError

_T = TypeVar("_T")

REGISTERED: Final = "mlflow:"  # prefix of a baseline that is looked up in an experiment


@dataclass(frozen=True)
class Plan:
    """Measures, those of the rules included, the rules, and the settings they come from."""

    measures: tuple[str, ...]
    rules: tuple[Rule, ...]
    config: EvaluationConfig
    examples: int

    @property
    def baseline(self) -> str | None:
        """What to compare with: a name, a path, or `mlflow:EXPERIMENT`."""
        return self.config.baseline

    @property
    def needs_judgements(self) -> list[str]:
        """Rules and keys that nothing can answer without qrels or labels."""
        asked = [f"rule {rule.text!r}" for rule in self.rules if rule.needs_judgements]
        return asked + (["evaluation.baseline"] if self.baseline else [])


def make_plan(config: EvaluationConfig, report: ReportConfig) -> Plan:
    """Read measures and rules.

    Raises:
        RefusedError: with everything that cannot be read.
    """
    messages: list[str] = []

    def read(key: str, parse: Callable[[Sequence[str]], tuple[_T, ...]]) -> tuple[_T, ...]:
        try:
            return parse(getattr(config, key))
        except ValueError as error:
            messages.extend(f"evaluation.{key}: {line}" for line in str(error).splitlines())
            return ()

    measures, rules = read("metrics", parse_measures), read("gate", parse_rules)
    if not config.metrics:
        messages.append("evaluation.metrics is empty; name at least one, for example nDCG@10")
    needs = [rule.text for rule in rules if rule.side == "baseline"]
    if needs and not config.baseline:
        messages.append(
            f"evaluation.gate: {needs[0]!r} needs something to compare with; set "
            "evaluation.baseline"
        )
    if config.baseline and not config.baseline.removeprefix(REGISTERED):
        messages.append("evaluation.baseline names no experiment; write mlflow:EXPERIMENT")
    messages += [
        f"evaluation.slices: {name} is a column of the table per query; rename yours"
        for name in sorted(RESERVED & set(config.slices))
    ]
    if messages:
        raise RefusedError(messages)
    extra = [rule.measure for rule in rules if rule.measure is not None]
    return Plan(tuple(dict.fromkeys([*measures, *extra])), rules, config, report.examples)
