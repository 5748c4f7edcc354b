"""Section `mlflow`: tracking."""

from typing import Annotated

from pydantic import Field

from jobs.config.section import Section


class MlflowConfig(Section):
    """Tracking. Only the driver talks to it, after the data is written."""

    enabled: bool = Field(True, description="log the run")
    tracking_uri: str | None = Field(
        None, description="MLflow server or database (unset: MLFLOW_TRACKING_URI, else mlflow.db)"
    )
    experiment: str = Field("spark-rerank", description="experiment's name")
    run_name: str | None = Field(None, description="run's name (unset: MLflow chooses one)")
    timeout: Annotated[float, Field(gt=0)] = Field(
        30.0, description="longest that logging may hold up the end of the job [s]"
    )
