"""Section `ranking`: what is kept of each order."""

from typing import Literal

from pydantic import Field

from jobs.config.section import PositiveInt, Section


class RankingConfig(Section):
    """What is kept of each query's order."""

    top_k: PositiveInt | None = Field(None, description="ranks kept per query (unset: all) [rows]")
    min_score: float | None = Field(None, description="lowest logit kept (unset: all) [logit]")
    tie_break: Literal["doc_id_desc", "doc_id_asc"] = Field(
        "doc_id_desc", description="order of equal scores; doc_id_desc is trec_eval's"
    )
