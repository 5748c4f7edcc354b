"""Section `output`: where results go."""

from typing import Annotated, Literal

from pydantic import Field

from jobs.config.section import Section


class OutputConfig(Section):
    """Where results go."""

    path: str | None = Field(None, description="output folder [path or URI]")
    format: Literal["parquet", "orc", "json", "csv"] = Field(
        "parquet", description="format of the ranked table and the rejects"
    )
    partitions: Annotated[int, Field(ge=0)] = Field(
        0, description="files of the ranked table (0: from its size) [files]"
    )
