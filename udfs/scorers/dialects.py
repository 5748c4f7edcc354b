"""Remote rerank dialects as data: where requests go, the names of their and their answers' keys."""

import json
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from udfs.spec import RemoteSpec, ScoreKind

Answer = NDArray[np.float64]
Unit = Literal["search unit", "token", "request"]


@dataclass(frozen=True)
class Keys:
    """What one dialect sends and gets."""

    path: str  # below `remote.url`
    most: int  # documents of a request
    results: str  # key of the list of results; empty: the answer is that list
    score: str  # key of a result's score
    gives: ScoreKind | None  # kind of the scores; None: the model decides
    documents: str = "documents"
    wrapped: bool = False  # whether each text is {"text": ...}
    names_model: bool = True
    fixed: Mapping[str, Any] = field(default_factory=dict)  # further keys of every request
    chooses: tuple[tuple[str, bool], ...] = ()  # keys for the kind of scores; values for logits
    most_bytes: int = 4_000_000  # of the documents of a request
    bills: Unit = "request"  # what is paid for


_LARGEST: Final = 1e38  # about that of a float32
_BARE: Final = {"return_documents": False}
DIALECTS: Final[Mapping[str, Keys]] = {
    "cohere": Keys("/v2/rerank", 1000, "results", "relevance_score", "probability",
                   bills="search unit"),
    "voyage": Keys("/v1/rerank", 1000, "data", "relevance_score", "probability",
                   fixed={"truncation": True, **_BARE}, bills="token"),
    "jina": Keys("/v1/rerank", 1000, "results", "relevance_score", "probability", fixed=_BARE,
                 bills="token"),
    "vllm": Keys("/v1/rerank", 1000, "results", "relevance_score", "logit",
                 chooses=(("use_activation", False),)),
    # `truncate`: else one document that is too long fails all those it came with.
    "tei": Keys("/rerank", 32, "", "score", "logit", documents="texts", names_model=False,
                fixed={"truncate": True}, chooses=(("raw_scores", True),), most_bytes=1_500_000),
    "infinity": Keys("/rerank", 1000, "results", "relevance_score", "logit", fixed=_BARE,
                     chooses=(("raw_scores", True),)),
    "nim": Keys("/v1/ranking", 512, "rankings", "logit", "logit", documents="passages",
                wrapped=True, fixed={"truncate": "END"}),
    "sglang": Keys("/v1/rerank", 1000, "", "score", None, fixed=_BARE),
    "mixedbread": Keys("/v1/reranking", 1000, "data", "score", "probability", documents="input",
                       fixed={"return_input": False}, bills="token"),
}  # fmt: skip
# Keys that are not for the user to set: what is sent, and how much comes back.
RESERVED: Final = (
    "model", "query", "documents", "texts", "passages", "input", "top_n", "top_k", "raw_scores",
    "use_activation", "return_documents", "return_text", "return_input",
)  # fmt: skip


def read_key(key_env: str, key_file: str) -> str:
    """Return the key of a server, from a file or variable; ValueError says where it should be."""
    try:
        key = Path(key_file).read_text("ascii") if key_file else os.environ.get(key_env, "")
    except (OSError, ValueError):
        key = ""
    key = key.strip()
    if (key_env or key_file) and not (key and key.isascii() and key.isprintable()):
        place = "file of remote.key_file" if key_file else "environment variable of remote.key_env"
        raise ValueError(
            f"the {place} is not there or holds no key on {socket.gethostname()}; set it on every "
            "machine that scores"
        )
    return key


def make_request(spec: RemoteSpec, query: str, docs: Sequence[str]) -> bytes:
    """Return the body of a request."""
    keys = DIALECTS[spec.dialect]
    body: dict[str, Any] = {"model": spec.model} if keys.names_model else {}
    body["query"] = {"text": query} if keys.wrapped else query
    body[keys.documents] = [{"text": doc} for doc in docs] if keys.wrapped else list(docs)
    body |= {name: (spec.score == "logit") == for_logits for name, for_logits in keys.chooses}
    body |= {**keys.fixed, **{name: json.loads(value) for name, value in spec.parameters}}
    return json.dumps(body, ensure_ascii=False).encode()


def read_answer(spec: RemoteSpec, content: Any, count: int) -> Answer:
    """Return the scores, float64[count], in the order of the documents; NaN where there is none.

    Raises:
        ValueError: if the answer is none of the dialect's, or not to these documents.
    """
    keys, scores, seen = DIALECTS[spec.dialect], np.full(count, np.nan), set[int]()
    if keys.results:
        content = content.get(keys.results) if isinstance(content, dict) else None
    if not isinstance(content, list):
        raise ValueError("no list of results")
    for result in content:
        index = result.get("index") if isinstance(result, dict) else None
        if type(index) is not int or not 0 <= index < count or index in seen:
            raise ValueError("an index that is missing, wrong, or there twice")
        seen.add(index)
        score = result.get(keys.score)
        if type(score) in (int, float) and abs(score) < _LARGEST:  # NaN is not
            scores[index] = score
    if spec.score == "probability" and ((scores < 0) | (scores > 1)).any():
        raise ValueError("a score outside 0 to 1; for logits set remote.score=logit")
    return scores


def read_usage(content: Any) -> tuple[float, int]:
    """Return what an answer says of its cost: billed units and tokens, 0 where it is silent."""

    def number(*names: str) -> float:
        at = content
        for name in names:
            at = at.get(name) if isinstance(at, dict) else None
        return at if type(at) in (int, float) and 0 <= at < _LARGEST else 0

    tokens = number("usage", "total_tokens") or number("meta", "tokens", "input_tokens")
    return float(number("meta", "billed_units", "search_units")), int(tokens)


def billed(dialect: str, requests: float, units: float, tokens: float) -> float:
    """Return how many of the dialect's unit were used; requests where answers do not say."""
    known = {"search unit": units, "token": tokens}
    return known.get(DIALECTS[dialect].bills, requests) or requests


def work(spec: RemoteSpec, pairs: Sequence[tuple[str, str]]) -> float:
    """Return what pairs cost by their size, to share a job's units out: bytes, or requests."""
    if DIALECTS[spec.dialect].bills == "token":
        return float(sum(len(query.encode()) + len(doc.encode()) for query, doc in pairs))
    docs = Counter(query for query, _ in pairs)
    return float(sum(-(-count // request_size(spec)) for count in docs.values()))


def request_size(spec: RemoteSpec) -> int:
    """Return the most documents of a request."""
    return min(spec.documents, DIALECTS[spec.dialect].most)


def to_logits(spec: RemoteSpec, scores: Answer) -> Answer:
    """Return logits whose sigmoid is the probability that the server gave; finite for 0 and 1."""
    if spec.score == "logit":
        return scores
    # The smallest double that float32 logits tell from 0, the largest below 1.
    inside = np.clip(scores, 1e-300, 1 - 2.0**-53)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def plan(docs: Sequence[str], rows: list[int], most: int, size: int) -> list[list[int]]:
    """Cut rows of one query into requests of so many documents and bytes; a larger one is alone."""
    requests: list[list[int]] = []
    held = 0
    for row in rows:
        held += (added := len(docs[row].encode()))
        if not requests or len(requests[-1]) == most or held > size:
            requests.append([])
            held = added
        requests[-1].append(row)
    return requests
