"""The configuration: one frozen object, section by section, every key with its unit and default.

The defaults here are the only ones. `conf/*.yaml` and the command line override them (see
`jobs.runtime.cli`), and `jobs.runtime.cli` renders this module as `--help`.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from jobs.config.measuring import BenchConfig, TuneConfig
from jobs.config.pairs import InputConfig
from jobs.config.results import (
    EvaluationConfig,
    MlflowConfig,
    OutputConfig,
    RankedConfig,
    RankingConfig,
    ReportConfig,
    StoreConfig,
)
from jobs.config.scoring import BatchingConfig, ModelConfig, ScoringConfig, SparkConfig
from jobs.config.section import Section

__all__ = [
    "BatchingConfig",
    "BenchConfig",
    "Config",
    "EvaluationConfig",
    "InputConfig",
    "MlflowConfig",
    "ModelConfig",
    "OutputConfig",
    "RankedConfig",
    "RankingConfig",
    "ReportConfig",
    "ScoringConfig",
    "Section",
    "SparkConfig",
    "StoreConfig",
    "TuneConfig",
]


class Config(Section):
    """Everything a command needs to know, resolved once."""

    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    batching: BatchingConfig = BatchingConfig()
    scoring: ScoringConfig = ScoringConfig()
    ranking: RankingConfig = RankingConfig()
    ranked: RankedConfig = RankedConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    store: StoreConfig = StoreConfig()
    output: OutputConfig = OutputConfig()
    mlflow: MlflowConfig = MlflowConfig()
    spark: SparkConfig = SparkConfig()
    bench: BenchConfig = BenchConfig()
    tune: TuneConfig = TuneConfig()
    dry_run: bool = Field(
        False, description="read and check the input, print its size and lengths, score nothing"
    )

    @model_validator(mode="after")
    def _budget_holds_a_pair(self) -> Config:
        if self.model.max_length > self.batching.max_tokens:
            raise ValueError(
                f"model.max_length={self.model.max_length} exceeds "
                f"batching.max_tokens={self.batching.max_tokens}; raise one or lower the other"
            )
        return self
