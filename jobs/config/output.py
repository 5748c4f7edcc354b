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
    partition_by: list[str] = Field(
        [],
        description="column, such as a date, that splits the ranked table and the rejects into "
        "folders, may be repeated; a run replaces only the partitions that its input has",
    )
    publish: Literal["always", "if_passed"] = Field(
        "if_passed",
        description="if_passed: a run whose gate fails is not published, and one that ends with "
        "exit code 3 or ranks no row replaces nothing; their results are kept, until the next "
        "such run, in OUT/unpublished/RUN_ID; always: they are published, too",
    )
    overwrite: bool = Field(
        False,
        description="write to a folder that holds something else, results of another date, or "
        "results partitioned otherwise",
    )
