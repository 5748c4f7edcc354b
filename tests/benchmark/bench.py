"""Time the engine and the job against what a user could pick instead, on the same pairs and model.

    python -m tests.benchmark.bench --model.name DIR --input.path IN.parquet
    python -m tests.benchmark.bench --bench.shape minilm-l6 --bench.mixes web --bench.mixes skewed

Every way runs in a process of its own, the ways take turns, round after round, and medians are
compared.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from jobs.output.record import versions
from jobs.output.tracking.runs import fetch_model
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, RefusedError
from jobs.runtime.session import local_cores
from jobs.scoring.models import resolve_model
from tests.benchmark.config import BenchmarkConfig
from tests.benchmark.measure import PEAK, Bench, ratio
from tests.benchmark.mixes import GIVEN, write_pairs
from tests.benchmark.shapes import random_model
from udfs.devices import common_precision, describe, process_slot
from udfs.spec import ScorerSpec

COMMAND: Final = Command(
    name="python -m tests.benchmark.bench",
    about="Time the engine and the job against what a user could pick instead, on the same pairs "
    "and model.",
    require=("model.name|bench.shape",),
    sections="bench model batching input output mlflow spark",
    config=BenchmarkConfig,
)
_PACKAGES: Final = {
    "sentence_transformers": "sentence_transformers",
    "predict_batch_udf": "sentence_transformers",
    "flagembedding": "FlagEmbedding",
}
_BACKENDS: Final = ("torch", "tokenizer")
# Which throughputs are divided, and whether start-up counts.
_RATIOS: Final = (
    ("engine", "sentence_transformers", "seconds"),
    ("job", "engine", "seconds"),
    ("engine", "tokenizer", "seconds"),
    ("job", "tokenizer", "seconds"),
    ("job", "predict_batch_udf", "seconds"),
    ("job", "predict_batch_udf", "seconds_with_start_up"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of `jobs.runtime.errors`."""
    return COMMAND.run(argv, run)


def run(config: BenchmarkConfig) -> int:
    """Compare, print, and write the result where `output.path` says."""
    refuse(config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = compare(config, folder)
    sys.stdout.write(table(result) + "\n")
    if config.output.path:
        target = Path(config.output.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return DONE


def refuse(config: BenchmarkConfig) -> None:
    """Find out before anything runs what cannot be measured.

    Raises:
        RefusedError: naming the packages or keys that are missing.
    """
    findings = []
    packages = sorted({_PACKAGES[way] for way in config.bench.ways if way in _PACKAGES})
    if missing := [package for package in packages if find_spec(package) is None]:
        findings.append(
            f"{', '.join(missing)} to be measured against is not installed; pip install "
            "'spark-rerank[peers]', or leave it out of bench.ways"
        )
    if GIVEN in config.bench.mixes and not config.input.path:
        findings.append(
            "bench.mixes=given needs input.path; give it, or name made-up mixes instead"
        )
    if config.model.backend not in _BACKENDS:
        findings.append(
            f"model.backend={config.model.backend} is not measured here; use torch, or tokenizer, "
            "which leaves the model out (jobs.tune measures onnxruntime)"
        )
    if findings:
        raise RefusedError(findings)


def compare(config: BenchmarkConfig, folder: Path) -> dict[str, Any]:
    """Measure every mix.

    Returns:
        `rows` (see `tests.benchmark.measure`), a list of `ratios` with their mix, what surrounds
        them (`device`, `date`, `master`, `pairs`, `versions`), and `ratio`: job to
        predict_batch_udf with start-up, of the first mix.
    """
    slot = process_slot()
    given = config.model.precision
    model = folder / "model"
    if config.bench.shape is None:
        fetch = partial(fetch_model, config.mlflow.tracking_uri)
        model = resolve_model(config.model, fetch).path
    else:
        model.mkdir()
        random_model(config.bench.shape, model)
    draft = ScorerSpec(str(model), "", device=config.model.device, attention=config.model.attention)
    device = describe(draft, slot)
    bench = Bench(
        config=config,
        model=model,
        precision=common_precision([device]) if given == "auto" else given,
        lanes=1 if device == "cuda" else local_cores(config.spark.master),
        folder=folder,
    )
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    pairs = {}
    for mix in config.bench.mixes:
        path = folder / f"{mix}.parquet"
        pairs[mix] = write_pairs(config, mix, path)
        found = bench.rows(mix, path)
        rows += found
        for fast, slow, key in _RATIOS:
            value = ratio(found, fast, slow, key)
            with_start_up = key != "seconds"
            ratios.append({"mix": mix, "fast": fast, "slow": slow, "start_up": with_start_up,
                           "ratio": value})  # fmt: skip
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "lanes": bench.lanes,
        "master": config.spark.master,
        "pairs": pairs,
        "rows": rows,
        "ratios": [found for found in ratios if found["ratio"] is not None],
        "ratio": next((found["ratio"] for found in ratios if found["start_up"]), None),
        "versions": versions(),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result for a terminal."""
    heads = ("mix", "what", "precision", "pairs/s", "tokens/s", "of peak", "padding", "MB", "diff")
    lines = [
        f"{result['device']}, {result['lanes']} at once, {result['master']}; after start-up, "
        f"medians of {max((len(row.get('seconds', [])) for row in result['rows']), default=0)}",
        _line(heads),
    ]
    for row in result["rows"]:
        start = (row["mix"], row["what"], row["precision"])
        if row["what"] == PEAK:
            lines.append(_line((*start, f"{row['gflops']:,.0f} GFLOP/s")))
        elif "error" in row:
            lines.append(_line((*start, "does not run: " + row["error"])))
        else:
            share = [
                "-" if row[key] is None else f"{row[key]:.1%}" for key in ("utilisation", "padding")
            ]
            values = (f"{row['pairs_per_s']:,.1f}", f"{row['tokens_per_s']:,.0f}", *share,
                      str(row["peak_memory_mb"]), f"{row['max_abs_difference']}")  # fmt: skip
            lines.append(_line((*start, *values)))
            if row["parts"]:
                parts = ", ".join(f"{name} {value:.1f} s" for name, value in row["parts"].items())
                lines.append(f"{'':8} of {result['lanes']} together: {parts}")
    for found in result["ratios"]:
        how = "with start-up" if found["start_up"] else "after start-up"
        lines.append(
            f"{found['mix']}: {found['fast']} {found['ratio']:.2f} times {found['slow']} ({how})"
        )
    if result["ratio"] is not None:
        lines.append(f"median ratio {result['ratio']:.2f}")
    return "\n".join(lines)


def _line(values: Sequence[str]) -> str:
    widths = (8, 22, 10, 10, 10, 8, 8, 7, 9)
    return " ".join(
        value.ljust(width) if at < 3 else value.rjust(width)
        for at, (value, width) in enumerate(zip(values, widths, strict=False))
    ).rstrip()


if __name__ == "__main__":
    sys.exit(main())
