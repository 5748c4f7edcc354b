"""The settings to be measured. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from jobs.config import BatchingConfig, TuneConfig
from jobs.scoring.token_lengths import SampledLengths
from udfs.spec import Backend, Precision, ScorerSpec

Engine = tuple[Backend, Precision]

#: Lengths whose effect is shown, and the powers among them that are tried [tokens].
LENGTHS: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_P95_STEP: Final = 8  # tokens; the 95th percentile is rounded up to a multiple
_RARE: Final = 0.01  # share of pairs; where fewer are cut, a longer max_length is not tried
_MOST_LENGTHS: Final = 3
_BUDGETS: Final[Mapping[bool, tuple[int, ...]]] = {
    False: (1024, 4096, 16384),
    True: (8192, 32768, 131072),
}
_ENGINES: Final[Mapping[str, tuple[Engine, ...]]] = {
    "cuda": (("torch", "fp32"), ("torch", "fp16"), ("torch", "bf16")),
    "cpu-bf16": (("torch", "fp32"), ("torch", "bf16")),
    "cpu": (("torch", "fp32"),),
}
_ONNX: Final[tuple[Engine, ...]] = (("onnxruntime", "fp32"), ("onnxruntime", "int8"))


@dataclass(frozen=True, order=True)
class Setting:
    """What a user may set about speed. The first four may change scores, too."""

    backend: Backend
    precision: Precision
    max_length: int
    max_tokens: int
    max_pairs: int

    @property
    def engine(self) -> str:
        """Backend and precision in a word; torch goes without saying."""
        return self.precision if self.backend == "torch" else f"{self.backend} {self.precision}"

    def spec(self, drafts: Mapping[Backend, ScorerSpec]) -> ScorerSpec:
        """The scorer with this setting."""
        return replace(
            drafts[self.backend],
            precision=self.precision,
            max_length=self.max_length,
            max_tokens=self.max_tokens,
            max_pairs=self.max_pairs,
        )


def engines(config: TuneConfig, device: str, *, has_onnx: bool) -> tuple[Engine, ...]:
    """Backends and precisions: as configured, else what the device is good at.

    Args:
        config: `precisions`.
        device: as `udfs.devices.describe` names it.
        has_onnx: whether ONNX Runtime can be used; it is tried by itself where torch has no bf16.
    """
    if not config.precisions:
        return _ENGINES[device] + (_ONNX if has_onnx and device == "cpu" else ())
    named = [name.rpartition(":") for name in config.precisions]
    by_name: dict[str, Engine] = {
        f"{backend}:{precision}": (backend, precision)
        for backend, precision in [*_ENGINES["cuda"], *_ONNX]
    }
    found = [by_name[f"{backend or 'torch'}:{precision}"] for backend, _, precision in named]
    reference: Engine = ("torch", "fp32")
    return tuple(dict.fromkeys([reference, *found]))


def lengths_to_try(
    config: TuneConfig, lengths: SampledLengths, positions: int | None
) -> tuple[int, ...]:
    """As configured; else the 95th percentile, the first power of two that cuts next to nothing,
    and the one below; no longer than the model's positions. The longest is last.
    """
    limit = positions or LENGTHS[-1]
    if config.max_lengths:
        return tuple(sorted({min(length, limit) for length in config.max_lengths}))
    enough = next((n for n in LENGTHS if n <= limit and lengths.cut_at(n).share < _RARE), limit)
    p95 = -(-int(lengths.percentile(95)) // _P95_STEP) * _P95_STEP
    tried = {enough, min(max(p95, LENGTHS[0]), enough)}
    tried |= {max((n for n in LENGTHS if n < enough), default=enough)}
    return tuple(sorted(tried))[-_MOST_LENGTHS:]


def make_grid(
    config: TuneConfig,
    batching: BatchingConfig,
    device: str,
    tried: tuple[Sequence[Engine], Sequence[int]],
) -> list[Setting]:
    """Every combination; first the reference, float32 and the longest, then those nearest to it.

    When time runs out, every key has been tried by itself before keys are tried together.
    """
    given, lengths = tried
    budgets = config.max_tokens or _BUDGETS[device == "cuda"]
    middle = sorted(budgets)[(len(budgets) - 1) // 2]
    reference = Setting("torch", "fp32", lengths[-1], max(middle, lengths[-1]), batching.max_pairs)
    found = {
        Setting(backend, precision, length, max(budget, length), batching.max_pairs)
        for (backend, precision), length, budget in product(given, lengths, budgets)
    }
    drawn = random.Random(config.seed)
    shuffled = sorted(found - {reference})
    drawn.shuffle(shuffled)
    return [reference, *sorted(shuffled, key=lambda setting: _apart(setting, reference))]


def batch_sizes(config: TuneConfig, chosen: Setting) -> list[Setting]:
    """The chosen setting with batches of so many pairs, whatever their lengths."""
    return [
        replace(chosen, max_pairs=pairs, max_tokens=pairs * chosen.max_length)
        for pairs in sorted(set(config.max_pairs))
    ]


def _apart(one: Setting, other: Setting) -> int:
    """Keys in which they differ; backend and precision are one."""
    return (
        (one.engine != other.engine)
        + (one.max_length != other.max_length)
        + (one.max_tokens != other.max_tokens)
    )
