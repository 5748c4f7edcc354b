"""The configuration: one frozen object, one class per section, every key with unit and default.

`conf/*.yaml` and the command line override the defaults, some of which `ScorerSpec` repeats for
notebooks. `jobs.runtime.cli` renders the descriptions as `--help`. Functions are given the sections
they read (`ModelConfig`, `BatchingConfig`, ...). To add a key, add a field to its section.
"""

from typing import Self

from pydantic import model_validator

from jobs.config.data import InputConfig as InputConfig
from jobs.config.data import OutputConfig as OutputConfig
from jobs.config.data import StoreConfig as StoreConfig
from jobs.config.evaluation import EvaluationConfig as EvaluationConfig
from jobs.config.evaluation import LabelConfig as LabelConfig
from jobs.config.evaluation import MlflowConfig as MlflowConfig
from jobs.config.evaluation import RankedConfig as RankedConfig
from jobs.config.evaluation import RankingConfig as RankingConfig
from jobs.config.evaluation import ReportConfig as ReportConfig
from jobs.config.remote import RemoteConfig as RemoteConfig
from jobs.config.scoring import BatchingConfig as BatchingConfig
from jobs.config.scoring import ModelConfig as ModelConfig
from jobs.config.scoring import PassagesConfig as PassagesConfig
from jobs.config.scoring import ScoringConfig as ScoringConfig
from jobs.config.scoring import SparkConfig as SparkConfig
from jobs.config.scoring import TuneConfig as TuneConfig
from jobs.config.section import Section
from jobs.config.training import DistillConfig as DistillConfig
from jobs.config.training import ExportConfig as ExportConfig


class Config(Section):
    """Everything a command needs to know, resolved once."""

    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    remote: RemoteConfig = RemoteConfig()
    passages: PassagesConfig = PassagesConfig()
    batching: BatchingConfig = BatchingConfig()
    scoring: ScoringConfig = ScoringConfig()
    ranking: RankingConfig = RankingConfig()
    label: LabelConfig = LabelConfig()
    ranked: RankedConfig = RankedConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    store: StoreConfig = StoreConfig()
    output: OutputConfig = OutputConfig()
    mlflow: MlflowConfig = MlflowConfig()
    spark: SparkConfig = SparkConfig()
    tune: TuneConfig = TuneConfig()
    distill: DistillConfig = DistillConfig()
    export: ExportConfig = ExportConfig()
    dry_run: bool = False
    """read and check the input, print its size and lengths, score nothing"""

    @model_validator(mode="after")
    def _batch_holds_a_pair(self) -> Self:
        if self.model.max_length > self.batching.max_tokens:
            raise ValueError(
                f"model.max_length={self.model.max_length} exceeds "
                f"batching.max_tokens={self.batching.max_tokens}; raise one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _can_score_passages(self) -> Self:
        size, backend = self.passages.size, self.model.backend
        if size and size >= self.model.max_length:
            raise ValueError(
                f"passages.size={size} leaves no room for a query in "
                f"model.max_length={self.model.max_length}; lower one or raise the other"
            )
        if size and backend in ("stub", "remote"):
            raise ValueError(
                f"passages.size={size} needs a tokenizer, which model.backend={backend} has not; "
                "leave passages out"
            )
        if size and self.output.format == "csv":
            raise ValueError("output.format=csv cannot hold best_passage; choose parquet")
        return self

    @model_validator(mode="after")
    def _lists_are_of_one_day(self) -> Self:
        day = self.input.date
        if day and day in self.output.partition_by and day not in self.input.group:
            raise ValueError(
                f"output.partition_by={day} replaces results day by day, so a list must be of one "
                f"day; add input.group={day}"
            )
        if self.input.checkpoint and day not in self.output.partition_by:
            raise ValueError(
                "input.checkpoint takes some days, which would replace the results of all; add "
                f"output.partition_by={day}"
            )
        mode, narrow = self.output.commit_mode, self.input.since or self.input.until
        if self.output.table and day in self.output.partition_by and (
            (mode != "partitions" and self.input.checkpoint) or (mode == "replace" and narrow)
        ):  # fmt: skip
            raise ValueError(
                f"output.table_mode={mode} would not keep the table's other days as they are, of "
                "which this run reads none; leave it out, or set it to partitions"
            )
        if self.input.checkpoint and (self.dry_run or self.input.since or self.input.until):
            raise ValueError(
                "input.checkpoint takes new days and no others; leave out input.since, input.until "
                "and dry_run, or input.checkpoint"
            )
        return self

    @model_validator(mode="after")
    def _server_is_named(self) -> Self:
        if self.model.backend == "remote" and (missing := self.remote.missing()):
            raise ValueError(f"model.backend=remote needs {', '.join(missing)}")
        return self
