"""`ScorerSpec`: everything that decides a score, in one frozen, hashable value.

Standard library only: the driver pickles it into every task, and configuration errors are found
before torch is imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

Truncation = Literal["longest_first", "passage"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Attention = Literal["auto", "sdpa", "eager"]
Device = Literal["auto", "cpu", "cuda"]
Backend = Literal["torch", "onnxruntime", "tokenizer", "stub"]

#: Precisions of each backend.
PRECISIONS: Final[Mapping[Backend, tuple[Precision, ...]]] = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "int8"),
    "tokenizer": get_args(Precision),
    "stub": get_args(Precision),
}
#: Backends that run no model, see `udfs.scorers.stub`.
STAND_INS: Final[tuple[Backend, ...]] = ("tokenizer", "stub")

# Raise it whenever the scoring code changes the score of any pair: it opens a new fingerprint.
SCORING_VERSION: Final = 4

# Fields that say where and how fast a pair is scored, but not what its score is.
_NOT_SCORING: Final = (
    "model_path", "device", "max_tokens", "max_pairs", "window", "batch_timeout"
)  # fmt: skip


@dataclass(frozen=True)
class ScorerSpec:
    """How rendered pairs are scored. Templates and instructions are part of the rendered texts.

    Args:
        model_path: folder of the checkpoint as executors see it; `archive:NAME` names one that
            Spark has unpacked for them (`SparkContext.addArchive`).
        model_digest: SHA-256 over the checkpoint's files, see `udfs.checkpoint`; empty: any.
        max_length: longest pair given to the model, special tokens included [tokens].
        truncation: `longest_first` is sentence-transformers' rule, `passage` FlagEmbedding's.
        precision: number type of the model's weights. Logits are float32 in any case.
        attention: attention kernel; `auto` is sdpa where the architecture has it.
        backend: what runs the model.
        runtime: versions that made and run the backend's own copy of the model; empty for torch,
            which runs the checkpoint itself.
        trust_remote_code: whether code that comes with the checkpoint may run.
        device: where to score; `auto` is the task's GPU, else the first one, else the CPU.
        max_tokens: padded size of one batch [tokens].
        max_pairs: rows of one batch [pairs].
        window: pairs held and sorted by length before batching [pairs].
        batch_timeout: longest time for one batch, after which the process ends itself; only for
            processes that are started again, such as Spark's workers. 0: no limit [s].

    Raises:
        ValueError: naming the value, the limit and the remedy.
    """

    model_path: str
    model_digest: str
    max_length: int = 512
    truncation: Truncation = "longest_first"
    precision: Precision = "fp32"
    attention: Attention = "auto"
    backend: Backend = "torch"
    runtime: str = ""
    trust_remote_code: bool = False
    device: Device = "auto"
    max_tokens: int = 4096
    max_pairs: int = 512
    window: int = 1024
    batch_timeout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that no scorer could serve."""
        for name, value, choices in (
            ("truncation", self.truncation, get_args(Truncation)),
            ("precision", self.precision, get_args(Precision)),
            ("attention", self.attention, get_args(Attention)),
            ("device", self.device, get_args(Device)),
            ("backend", self.backend, get_args(Backend)),
        ):
            if value not in choices:
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
        scoring = {key: value for key, value in asdict(self).items() if key not in _NOT_SCORING}
        return {**scoring, "scoring_version": SCORING_VERSION}

    def fingerprint(self) -> str:
        """Return a hexadecimal digest [32 digits] of everything that can change a score."""
        canonical = json.dumps(self.scoring(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]
