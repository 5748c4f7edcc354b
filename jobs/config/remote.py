"""Section `remote`: which server is asked, for `model.backend=remote`."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from jobs.config.section import Section
from udfs.scorers.dialects import DIALECTS, RESERVED
from udfs.spec import Dialect, ScoreKind

# Models that read all candidates at once: a score is not a pair's own, and cannot be kept by pair.
_LISTWISE = ("jina-reranker-v3", "listwise", "rankgpt", "rankvicuna", "rankzephyr", "rank_zephyr")


class RemoteConfig(Section):
    """A reranker behind HTTP, for model.backend=remote: an API, or a server with a model."""

    dialect: Dialect | None = None
    """how requests and answers are written"""
    url: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = ""
    """address of the server, without the dialect's path, e.g. https://api.cohere.com [URL]"""
    model: str = ""
    """model's name there"""
    key_env: str = ""
    """environment variable that holds the key, on each machine that scores [name]"""
    key_file: str = ""
    """file that holds the key, on each machine that scores [path]"""
    score: ScoreKind | None = None
    """what scores are; of vllm, tei and infinity also what is asked for (unset: the dialect's)"""
    parameters: dict[str, str] = {}
    """further keys of every request, part of the fingerprint, NAME=JSON_OR_TEXT, may be repeated"""
    version: str = ""
    """your own word for a model that may change under its name; another one scores anew"""
    documents: PositiveInt = 100
    """documents of a request, of one query each; the dialect may allow fewer [documents]"""
    concurrency: PositiveInt = 4
    """requests in flight of one task [requests]"""
    requests_per_minute: NonNegativeFloat = 0.0
    """requests of the whole job, shared out to its tasks (0: no limit) [requests/min]"""
    timeout: PositiveFloat = 120.0
    """longest wait for the server within a request [s]"""
    patience: NonNegativeFloat = 300.0
    """longest time without a good answer, after which the job ends and keeps what it has [s]"""
    commit: PositiveInt = 1000
    """most pairs of a task: for each task slot, what a kill can have paid for and lost [pairs]"""
    max_units: NonNegativeFloat = 0.0
    """most that a run may use, then it ends and keeps what it has (0: no limit) [billed units]"""
    price_per_unit: NonNegativeFloat = 0.0
    """of a search unit (cohere), token (voyage, jina, mixedbread) or else request [currency]"""

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if taken := sorted(set(RESERVED).intersection(self.parameters)):
            raise ValueError(
                f"remote.parameters: {', '.join(taken)} is set by the job; see remote.model, "
                "remote.score and ranking.top_k"
            )
        if any(name in self.model.lower() for name in _LISTWISE):
            raise ValueError(
                f"remote.model={self.model} scores a document by its neighbours, and scores are "
                "kept by pair; choose a pointwise model"
            )
        return self

    def missing(self) -> list[str]:
        """Return the keys that are needed to ask, and not set."""
        found = [key for key in ("dialect", "url", "model") if not getattr(self, key)]
        unknown = self.dialect and not self.score and DIALECTS[self.dialect].gives is None
        return [f"remote.{key}" for key in (*found, *(["score"] if unknown else []))]
