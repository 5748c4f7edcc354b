"""The figures of `tests.benchmark.gpu`: the machine, its matrix peak, rows, ratios, a table."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.benchmark.gpu_lanes import Run
from tests.benchmark.gpu_ways import Setup
from tests.benchmark.rounds import ratio

_REPEATS: Final = 20  # matrix products that are timed
PEERS: Final = ("flagembedding", "sentence_transformers", "sentence_transformers_fa2")
_COLUMNS: Final = {
    "mix": "mix", "what": "way", "precision": "precision", "batch": "batch [pairs]",
    "pairs_per_s": "pairs/s", "tokens_per_s": "tokens/s", "ms_per_pair": "ms/pair",
    "share_of_peak": "share of peak", "padding": "padding", "device_mb": "device MB",
    "max_abs_difference": "difference", "spread": "spread", "error": "error",
}  # fmt: skip


def machine(device: str) -> dict[str, Any]:
    """Return date, device and versions."""
    import torch
    import transformers

    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(), "device": device,
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=power.limit,driver_version", "--format=csv,noheader"]
        try:
            said = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            said = ""
        power, _, driver = next(iter(said.splitlines()), "").partition(", ")
        found |= {
            "device": torch.cuda.get_device_name(),
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "power_limit": power, "driver": driver,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    return found


def matrix_peak(precision: str, device: str) -> float:
    """Return the speed of square products of random matrices [TFLOP/s]."""
    import torch

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(_REPEATS):
        torch.mm(left, right)
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(_REPEATS):
            torch.mm(left, right)
        end.record()
        end.synchronize()
        seconds = start.elapsed_time(end) / 1000.0
    else:
        begin = time.perf_counter()
        for _ in range(_REPEATS):
            torch.mm(left, right)
        seconds = time.perf_counter() - begin
    return 2.0 * size**3 * _REPEATS / seconds / 1e12


def flop_of(model: Path, lengths: NDArray[np.int64]) -> float:
    """Return what pairs of these lengths need [FLOP]: products of all layers, without the head."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    width, inner = config["hidden_size"], config["intermediate_size"]
    token = 2.0 * (4.0 * width * width + 2.0 * width * inner)
    tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
    return float(config["num_hidden_layers"] * (token * tokens + 4.0 * width * squares))


def row(
    way: str, mix: str, setup: Setup, runs: Sequence[Run], batch: int | None, error: str | None, *,
    lengths: NDArray[np.int64], reference: NDArray[np.float32] | None, peaks: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Return the medians of a way's rounds on a mix; its error if it has one."""
    found: dict[str, Any] = {"what": way, "mix": mix, "precision": setup.precision}
    if error is not None or not runs:
        return found | {"error": error or "not run"}
    seconds, last, tokens = median(run.seconds for run in runs), runs[-1], int(lengths.sum())
    found |= {
        "pairs_per_s": round(len(lengths) / seconds, 1),
        "tokens_per_s": round(tokens / seconds),
        "ms_per_pair": round(seconds * 1000.0 / len(lengths), 4),
        "seconds": [round(run.seconds, 4) for run in runs],
    }
    if batch is not None:
        found["batch"] = batch
    if last.padding is not None:
        found["padding"] = round(last.padding / (tokens + last.padding), 4)
    if last.device_mb is not None and last.logits is not None:
        found["device_mb"] = round(max(run.device_mb or 0.0 for run in runs))
    if last.logits is not None:
        speed = flop_of(Path(setup.model), lengths) / seconds / 1e12
        found["share_of_peak"] = round(speed / peaks[setup.precision], 4)
        if reference is not None:
            apart = np.abs(last.logits[: len(reference)] - reference).max()
            found["max_abs_difference"] = float(f"{apart:.3g}")
            found["spread"] = float(f"{reference.std():.3g}")
    return found


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return throughput of the engine : each peer at its best batch size, for each mix."""
    found = []
    for mix in dict.fromkeys(each["mix"] for each in rows):
        some = [each for each in rows if each["mix"] == mix]
        found += [
            {"mix": mix, "fast": "engine", "slow": peer, "ratio": ratio(some, "engine", peer)}
            for peer in PEERS
        ]
    return [each for each in found if each["ratio"] is not None]


def table(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    settings = result["settings"]
    peaks = ", ".join(f"{peak:.1f} in {name}" for name, peak in result["matrix_peak"].items())
    said = [
        f"{result['device']}, {settings['cores']} cores; {settings['shape'] or settings['model']}, "
        f"{settings['pairs']} pairs, medians of {settings['rounds']}; matrix peak {peaks} TFLOP/s",
        "",
        *_markdown(result["rows"], _COLUMNS),
    ]
    for each in result["ratios"]:
        said += ["", f"{each['mix']}: {each['fast']} {each['ratio']:.2f} times {each['slow']}"]
    if result["sweep"]:
        said += ["", *_markdown(result["sweep"])]
    if profile := result["profile"]:
        said += ["", *_markdown(profile.get("top", [profile]))]
        said += ["", ", ".join(f"{k} {v:.1%}" for k, v in profile.get("shares", {}).items())]
    return "\n".join(said)


def _markdown(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None
) -> list[str]:
    """A column for each key that a row has, by the names given."""
    keys = dict.fromkeys(key for each in rows for key in each if key != "seconds")
    names = columns or dict(zip(keys, keys, strict=True))
    used = [key for key in names if key in keys]
    lines = [[names[key] for key in used], ["---"] * len(used)]
    lines += [[_cell(each.get(key)) for key in used] for each in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|")
