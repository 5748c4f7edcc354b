"""Section `report`."""

from typing import Annotated

from pydantic import Field

from jobs.config.section import Section


class ReportConfig(Section):
    """The report, one HTML file."""

    examples: Annotated[int, Field(ge=0)] = Field(
        0,
        description="queries shown with their texts, before and after; texts stay out of the "
        "report unless asked for [queries]",
    )
