"""Which settings are tried."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from jobs.config import BatchingConfig, TuneConfig
from jobs.scoring.token_lengths import SampledLengths
from udfs.spec import Backend, Precision

#: Lengths whose effect is shown, and the powers among them that are tried [tokens].
LENGTHS: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_P95_STEP: Final = 8  # tokens; the 95th percentile is rounded up to a multiple
_RARE: Final = 0.01  # share of pairs; where fewer are cut, a longer max_length is not tried
_MAX_TOKENS: Final = {False: (1024, 4096, 16384), True: (8192, 32768, 131072)}  # True: on a GPU
# What is tried unless `tune.precisions` says it; ONNX Runtime where torch has no bf16.
_PRECISIONS: Final = {
    "cuda": ("fp32", "fp16", "bf16"),
    "cpu-bf16": ("fp32", "bf16"),
    "cpu": ("fp32", "onnxruntime:fp32", "onnxruntime:int8"),
}


class Setting(NamedTuple):
    """What a user may set about speed. The first three may change scores, too.

    `of_batches`: tried to see what batches of `max_pairs` cost, not to be recommended.
    """

    backend: Backend
    precision: Precision
    max_length: int
    max_tokens: int
    max_pairs: int
    of_batches: bool = False

    @property
    def engine(self) -> str:
        """Backend and precision in a word; torch goes without saying."""
        return self.precision if self.backend == "torch" else f"{self.backend} {self.precision}"


def setting_of(row: Mapping[str, Any]) -> Setting:
    """Return the setting that a row is about."""
    return Setting(*(row[key] for key in Setting._fields))


def engines(
    config: TuneConfig, device: str, *, has_onnx: bool
) -> tuple[tuple[Backend, Precision], ...]:
    """Return backends and precisions: float32, then those configured, else what `cuda`, `cpu-bf16`
    or `cpu` is good at.
    """
    known = [name for name in _PRECISIONS[device] if has_onnx or ":" not in name]
    parts = [name.rpartition(":") for name in ["fp32", *(config.precisions or known)]]
    found = {(backend or "torch", precision): None for backend, _, precision in parts}
    return cast(tuple[tuple[Backend, Precision], ...], tuple(found))


def lengths_to_try(
    config: TuneConfig, lengths: SampledLengths, positions: int | None
) -> tuple[int, ...]:
    """Return values of max_length, the longest last: as configured; else the 95th percentile, the
    first power of two that cuts next to nothing, and the one below. The model's positions limit.
    """
    limit = positions or LENGTHS[-1]
    if config.max_lengths:
        return tuple(sorted({min(length, limit) for length in config.max_lengths}))
    enough = next((n for n in LENGTHS if n <= limit and lengths.cut_at(n).share < _RARE), limit)
    p95 = -(-int(lengths.percentile(95)) // _P95_STEP) * _P95_STEP
    below = max((n for n in LENGTHS if n < enough), default=enough)
    return tuple(sorted({below, min(max(p95, LENGTHS[0]), enough), enough}))


def make_grid(
    config: TuneConfig, batching: BatchingConfig, engines: Sequence[tuple[Backend, Precision]],
    lengths: Sequence[int], *, on_gpu: bool,
) -> list[Setting]:  # fmt: skip
    """Return every combination: the reference, float32 and the longest, then those nearest to it.

    When time runs out, every key has been tried by itself before keys are tried together.
    """
    budgets = sorted(config.max_tokens or _MAX_TOKENS[on_gpu])
    middle = budgets[(len(budgets) - 1) // 2]
    reference = Setting(*engines[0], lengths[-1], max(middle, lengths[-1]), batching.max_pairs)
    found = {
        Setting(*engine, length, max(budget, length), batching.max_pairs)
        for engine, length, budget in itertools.product(engines, lengths, budgets)
    }
    others = sorted(found - {reference})
    random.Random(config.seed).shuffle(others)

    def distance(setting: Setting) -> int:
        keys = ("engine", "max_length", "max_tokens")
        return sum(getattr(setting, key) != getattr(reference, key) for key in keys)

    return [reference, *sorted(others, key=distance)]


def batch_sizes(config: TuneConfig, chosen: Setting) -> list[Setting]:
    """Return the chosen setting with batches of so many pairs, whatever their lengths."""
    return [
        chosen._replace(max_pairs=pairs, max_tokens=pairs * chosen.max_length, of_batches=True)
        for pairs in sorted(set(config.max_pairs))
    ]
