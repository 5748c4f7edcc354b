"""Section `spark`: the session."""

from pydantic import Field

from jobs.config.section import Section


class SparkConfig(Section):
    """The session."""

    master: str = Field("local[*]", description="for a local run; spark-submit's master wins")
    app_name: str = Field("spark-rerank", description="application's name")
    settings: dict[str, str] = Field(
        {}, description="further Spark settings, KEY=VALUE, may be repeated"
    )
