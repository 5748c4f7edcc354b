"""Section `store`: where scores are kept."""

from typing import Annotated

from pydantic import Field

from jobs.config.section import Age, Section


class StoreConfig(Section):
    """Where scores are kept. Runs that share a store share their work."""

    path: str | None = Field(None, description="score store (unset: OUT/scores) [path or URI]")
    older_than: Age = Field(
        "30d",
        description="jobs.store gc: scores of a fingerprint not used for so long are dropped "
        "[minutes m, hours h, days d]",
    )
    settled: Age = Field(
        "6h",
        description="jobs.store compact, gc: what was used or changed more recently is left "
        "alone; longer than any run takes [minutes m, hours h, days d]",
    )
    tolerance: Annotated[float, Field(ge=0.0)] = Field(
        0.05, description="jobs.store verify: how far two scores of one pair may differ [logit]"
    )
