"""Where the time of one window goes: kernels of a GPU, or operators of a CPU."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

_TOP: Final = 10
_NAME: Final = 60  # characters
# The first kind that a name matches; flash kernels are made with cutlass.
_KINDS: Final = (
    ("attention", re.compile(r"flash|fmha|attention|attn|softmax", re.I)),
    ("products", re.compile(r"gemm|gemv|cutlass|nvjet|cublas|xmma|splitk|mm$|linear", re.I)),
    ("copies", re.compile(r"memcpy|memset|copy|aten::(to|cat|contiguous)\b", re.I)),
    ("elementwise", re.compile(
        r"elementwise|reduce|norm|vectorized|index|gather|embedding|gelu|aten::(add|mul)_?\b|triton",
        re.I)),
)  # fmt: skip
KINDS: Final = (*(kind for kind, _ in _KINDS), "other", "idle")

Span = tuple[str, float, float]  # name, start and end [ms]


def profiled(run: Callable[[], object], *, cuda: bool) -> dict[str, Any]:
    """Run under torch's profiler.

    Returns:
        `wall_ms`; `top`: name, ms and share of the wall time of the ten longest; `shares` of the
        wall time by kind, and idle. Kernels that run side by side count twice, but not in `idle`.
    """
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        run()
        wall = (time.perf_counter() - start) * 1000.0
    spans = _kernels(profiler) if cuda else _operators(profiler)
    times: dict[str, float] = defaultdict(float)
    for name, begin, end in spans:
        times[name] += end - begin
    top = sorted(times.items(), key=lambda each: -each[1])[:_TOP]
    shares = dict.fromkeys(KINDS, 0.0)
    for name, took in times.items():
        shares[_kind(name)] += took / wall
    shares["idle"] = max(0.0, 1.0 - _busy(spans) / wall)
    return {
        "wall_ms": round(wall, 2),
        "top": [
            {"name": _short(name), "ms": round(took, 3), "share": round(took / wall, 4)}
            for name, took in top
        ],
        "shares": {kind: round(share, 4) for kind, share in shares.items()},
    }


def _kernels(profiler: Any) -> list[Span]:
    from torch.autograd import DeviceType

    return [
        (event.name, event.time_range.start / 1000.0, event.time_range.end / 1000.0)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]


def _operators(profiler: Any) -> list[Span]:
    """Operators without those inside them, laid end to end: a CPU's profile has no lanes."""
    spans, at = [], 0.0
    for row in profiler.key_averages():
        took = row.self_cpu_time_total / 1000.0
        spans.append((row.key, at, at + took))
        at += took
    return spans


def _busy(spans: Iterable[Span]) -> float:
    """Time in which anything runs [ms]."""
    busy, until = 0.0, float("-inf")
    for _, start, end in sorted(spans, key=lambda span: span[1]):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "other")


def _short(name: str) -> str:
    return re.sub(r"void |at::native::|\(anonymous namespace\)::|cutlass::", "", name)[:_NAME]
