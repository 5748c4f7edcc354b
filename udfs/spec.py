"""`ScorerSpec`: everything that decides a score, in one frozen, hashable value."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

Truncation = Literal["longest_first", "passage", "document"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Attention = Literal["auto", "sdpa", "eager"]
Device = Literal["auto", "cpu", "cuda"]
Backend = Literal["torch", "onnxruntime", "tokenizer", "stub", "remote"]
Dialect = Literal[
    "cohere", "voyage", "jina", "vllm", "tei", "infinity", "nim", "sglang", "mixedbread"
]
ScoreKind = Literal["logit", "probability"]
Aggregate = Literal["first", "max", "mean_top_k", "sum_of_top_k"]

#: Precisions of each backend.
PRECISIONS: Final[Mapping[Backend, tuple[Precision, ...]]] = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "int8"),
    "tokenizer": get_args(Precision),
    "stub": get_args(Precision),
    "remote": get_args(Precision),  # the server's own; none is asked for
}

# Raise it whenever the scoring code changes the score of any pair: it opens a new fingerprint.
SCORING_VERSION: Final = 4

# Fields that say where and how fast a pair is scored, but not what its score is.
_NOT_SCORING: Final = (
    "model_path", "device", "max_tokens", "max_pairs", "window", "batch_timeout", "remote"
)  # fmt: skip
# Raise it whenever requests to remote models, or how an answer becomes a logit, change.
REMOTE_VERSION: Final = 1
# Fields added later; hashed only where they are set, so that older scores stay valid.
_HASHED_IF_SET: Final = ("passages", "prompt", "label", "modular")


@dataclass(frozen=True)
class Prompt:
    """What a causal language model is asked about a pair, in pieces that are tokenised apart.

    The model's next token answers: the logit of `positive` minus that of `negative` is the score.
    """

    before: tuple[str, ...]
    query: str  # holds {query}
    between: tuple[str, ...]
    document: str  # ends with {document}
    after: tuple[str, ...]  # never cut
    positive: str | int  # a token, by its text or id
    negative: str | int | None = None  # None: the logit of `positive` alone is the score


@dataclass(frozen=True)
class RemoteSpec:
    """A model that is asked over HTTP, and how. Holds no key: each process that asks reads it."""

    dialect: Dialect
    url: str
    model: str
    score: ScoreKind  # what the server is asked for, or is known to give
    parameters: tuple[tuple[str, str], ...] = ()  # further keys of a request and values, as JSON
    version: str = ""  # of a server whose model may change under its name
    key_env: str = ""  # variable that holds the key
    key_file: str = ""  # file that holds it
    documents: int = 100  # most of one request
    concurrency: int = 4  # requests in flight of one task
    requests_per_minute: float = 0.0  # of one task; 0: no limit
    timeout: float = 120.0  # longest wait for the server within a request [s]
    patience: float = 300.0  # longest time without any good answer [s]
    max_units: float = 0.0  # billed units of the whole job; 0: no limit
    planned: float = 0.0  # work of the whole job, as `udfs.scorers.dialects.work` measures it
    run: str = ""  # makes runs differ that are alike

    def scoring(self) -> dict[str, Any]:
        """Return everything that can change a score, by name; which host answers does not."""
        names = ("dialect", "model", "score", "version")
        scoring = {name: getattr(self, name) for name in names}
        return {**scoring, "parameters": dict(self.parameters), "remote_version": REMOTE_VERSION}


@dataclass(frozen=True)
class PassageSpec:
    """Windows over the tokens of a document, and how their logits make its own."""

    size: int  # of a window [tokens]
    stride: int  # from the start of one to that of the next [tokens]
    aggregate: Aggregate = "max"
    k: int = 1  # highest logits of `mean_top_k` and `sum_of_top_k`; 1 for the others


@dataclass(frozen=True)
class ScorerSpec:
    """How rendered pairs are scored. Templates and instructions are part of the rendered texts.

    Raises:
        ValueError: naming the value, the limit and the remedy.
    """

    # Folder of the checkpoint as executors see it; `archive:NAME` names one that Spark has unpacked
    # for them (`SparkContext.addArchive`).
    model_path: str
    model_digest: str  # SHA-256 over the checkpoint's files, see `udfs.checkpoint`; empty: any
    max_length: int = 512  # longest pair given to the model, special tokens included [tokens]
    # `longest_first` is sentence-transformers' rule, `passage` FlagEmbedding's, `document` that of
    # prompts.
    truncation: Truncation = "longest_first"
    precision: Precision = "fp32"  # of the model's weights; logits are float32 in any case
    attention: Attention = "auto"  # attention kernel; auto: sdpa where the architecture has it
    backend: Backend = "torch"  # what runs the model
    # Versions that made and run a backend's own copy of the model; empty for torch, which runs the
    # checkpoint itself.
    runtime: str = ""
    trust_remote_code: bool = False  # whether code that comes with the checkpoint may run
    device: Device = "auto"  # auto: the task's GPU, else the first one, else the CPU
    max_tokens: int = 4096  # padded size of one batch [tokens]
    max_pairs: int = 512  # rows of one batch [pairs]
    window: int = 1024  # pairs held and sorted by length before batching [pairs]
    # Longest time for one batch, after which the process ends itself; only for processes that are
    # started again, such as Spark's workers. 0: no limit [s].
    batch_timeout: float = 0.0
    remote: RemoteSpec | None = None  # of backend `remote`, which reads no other field but `window`
    passages: PassageSpec | None = None  # None: a document is scored as one text, and cut
    prompt: Prompt | None = None  # of a causal language model; None: a classifier
    label: int | None = None  # whose logit is the score, of a classifier with several labels
    modular: bool = False  # whether modules of sentence-transformers compute it, see `udfs.kinds`

    def __post_init__(self) -> None:
        """Refuse values that no scorer could serve."""
        for name, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(kind)
            if get_origin(kind) is Literal and value not in choices:
                raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(choices)}")
        if self.precision not in PRECISIONS[self.backend]:
            raise ValueError(
                f"precision={self.precision} is none of backend={self.backend}; use one of "
                f"{', '.join(PRECISIONS[self.backend])}, or another backend"
            )
        for name in ("max_length", "max_tokens", "max_pairs", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is below 1; raise it")
        if self.max_length > self.max_tokens:
            raise ValueError(
                f"max_length={self.max_length} exceeds max_tokens={self.max_tokens}; "
                "raise one or lower the other"
            )

    def scoring(self) -> dict[str, Any]:
        """Return everything that can change a score, by name."""
        if self.remote is not None:
            return {"backend": self.backend, **self.remote.scoring()}
        scoring = {key: value for key, value in asdict(self).items() if key not in _NOT_SCORING}
        for name in _HASHED_IF_SET:
            if scoring[name] is None or scoring[name] is False:
                del scoring[name]
        return {**scoring, "scoring_version": SCORING_VERSION}

    def fingerprint(self) -> str:
        """Return a hexadecimal digest [32 digits] of everything that can change a score."""
        canonical = json.dumps(self.scoring(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]
