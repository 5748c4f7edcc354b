"""Section `batching`: how much is scored at once."""

from typing import Annotated

from pydantic import Field

from jobs.config.section import PositiveInt, Section


class BatchingConfig(Section):
    """How much is scored at once."""

    max_tokens: PositiveInt = Field(4096, description="padded size of one batch [tokens]")
    max_pairs: PositiveInt = Field(512, description="rows of one batch [pairs]")
    window: PositiveInt = Field(
        1024, description="pairs a worker holds and sorts by length before batching [pairs]"
    )
    partitions: Annotated[int, Field(ge=0)] = Field(
        0, description="scoring tasks (0: from the number of pairs and task slots) [tasks]"
    )
    timeout: Annotated[float, Field(ge=0)] = Field(
        600.0,
        description="longest time for one batch; a worker that takes longer hangs: it ends, and "
        "Spark starts its task again (0: wait for ever) [s]",
    )
