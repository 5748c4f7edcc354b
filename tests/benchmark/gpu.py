"""Time the engine's GPU path against what a user could pick instead, with `udfs` and torch alone.

    python -m tests.benchmark.gpu --json gpu.json --markdown gpu.md
    python -m tests.benchmark.gpu --device cpu        # tries the kit

Every way is loaded once, in processes of its own; the ways take turns, round after round.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.benchmark.gpu_lanes import Lanes, Run
from tests.benchmark.gpu_report import PEERS, machine, matrix_peak, ratios, row, table
from tests.benchmark.gpu_ways import Order, Setup, has_flash_attention
from tests.benchmark.shapes import SHAPES, random_model
from tests.benchmark.texts import lengths_of, made_up, one_token_words
from udfs.devices import usable_cores
from udfs.encoding.pairs import PairEncoder
from udfs.spec import Precision, ScorerSpec

_ENGINES: Final = ("engine", "engine_padded", "engine_2", "engine_bf16")
_WAYS: Final = ("tokenizer", *_ENGINES, *PEERS)
# Batch sizes that a peer may take its best of [pairs]; the first is its default.
_BATCHES: Final = {"flagembedding": (128, 512)}
_OTHER_BATCHES: Final = (32, 128, 512)
_REFERENCE: Final = 256  # pairs scored in float32 to compare with
_MIXES: Final = ("short", "web", "long")
_started: Final = time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 also where there is no GPU, as nothing is wrong then."""
    given = _arguments(argv)
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("no GPU here: nothing measured; --device=cpu tries the kit")
            return 0
    with tempfile.TemporaryDirectory() as folder:
        Bench(given, Path(folder)).run()
    return 0


class Bench:
    """One model on one device.

    Attributes:
        result: what has been measured so far, as it is written.
    """

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        """Write the model and the pairs into a folder."""
        self.given = given
        self.precision: Precision = "fp16" if given.device == "cuda" else "fp32"
        if given.model is None:
            _say(f"random weights of {given.shape}")
            given.model = str(folder / "model")
            Path(given.model).mkdir()
            dtype = "float16" if self.precision == "fp16" else "float32"
            random_model(given.shape, Path(given.model), given.device, dtype)
        self.setup = Setup(
            given.model, str(folder), given.device, self.precision, given.max_length,
            given.max_tokens, given.window, usable_cores(),
        )  # fmt: skip
        self.lengths = write_texts(self.setup, given.mixes, given.pairs)
        self.result: dict[str, Any] = {
            **machine(given.device),
            "settings": {**vars(given), "cores": self.setup.cores},
            "matrix_peak": {}, "rows": [], "ratios": [], "sweep": [], "profile": None,
        }  # fmt: skip
        self._peaks: dict[str, list[float]] = {}

    def run(self) -> None:
        """Measure everything; what is there is written after each part of it."""
        with ExitStack() as stack:
            lanes = self._start(stack, [*self.given.ways, "reference"])
            references = self._references(lanes.pop("reference"))
            for mix in self.given.mixes:
                self.result["rows"] += self._mix(mix, lanes, references[mix])
                self.result["ratios"] = ratios(self.result["rows"])
                self._write()
            if self.given.profile and "engine" in lanes and lanes["engine"].error is None:
                _say("profile")
                mix = self.given.mixes[0]
                self.result["profile"] = lanes["engine"].profile(Order(mix, self.given.pairs))
                self._write()
        if self.given.sweep:
            self.result["sweep"] = self._sweep()
        self._write()
        print(table(self.result))

    def _start(
        self, stack: ExitStack, ways: Sequence[str], sizes: Sequence[int] = ()
    ) -> dict[str, Lanes]:
        """Load ways side by side; with `sizes`, the engine once for each budget of tokens."""
        lanes = {}
        for way in ways:
            precision = {"engine_bf16": "bf16", "reference": "fp32"}.get(way, self.precision)
            setup = replace(self.setup, precision=precision)
            lanes[way] = Lanes(way, setup, 2 if way == "engine_2" else 1)
        for size in sizes:
            lanes[str(size)] = Lanes("engine", replace(self.setup, max_tokens=size))
        for way, started in lanes.items():
            stack.callback(started.stop)
            _say(f"{way} loaded" if started.ready() else f"{way} does not load: {started.error}")
        return lanes

    def _references(self, reference: Lanes) -> dict[str, Any]:
        """float32[R] for each mix: logits of its first pairs in float32, computed once."""
        found = {}
        for mix in self.given.mixes:
            run: Run | str | None = reference.error
            if run is None:
                run = reference.run(Order(mix, min(_REFERENCE, self.given.pairs)))
            found[mix] = run.logits if isinstance(run, Run) else None
            if isinstance(run, str):
                _say(f"no reference for {mix}: {run}")
        reference.stop()
        return found

    def _mix(self, mix: str, ways: dict[str, Lanes], reference: Any) -> list[dict[str, Any]]:
        """Measure every way on a mix, in turn, and return a row for each."""
        runs: dict[str, list[Run]] = {way: [] for way in ways}
        batches: dict[str, int] = {}
        errors = {way: lanes.error for way, lanes in ways.items() if lanes.error is not None}
        for _ in range(self.given.rounds):
            self._measure_peaks(ways)
            for way, lanes in ways.items():
                if way in PEERS and way not in batches and way not in errors:
                    self._choose_batch(way, mix, lanes, batches, errors)
                if way not in errors:
                    found = lanes.run(Order(mix, self.given.pairs, batches.get(way, 0)))
                    if isinstance(found, str):
                        errors[way] = found
                    else:
                        runs[way].append(found)
                        _say(f"{mix}: {way} {self.given.pairs / found.seconds:.0f} pairs/s")
        for way, error in errors.items():
            _say(f"{mix}: {way} does not run: {error}")
        common = {"lengths": self.lengths[mix], "reference": reference, "peaks": self._medians()}
        return [
            row(way, mix, lanes.setup, runs[way], batches.get(way), errors.get(way), **common)
            for way, lanes in ways.items()
        ]

    def _choose_batch(
        self, way: str, mix: str, lanes: Lanes, batches: dict[str, int], errors: dict[str, str]
    ) -> None:
        """Find a peer's best batch size for a mix with a quarter of the pairs."""
        took, error = {}, ""
        for size in _BATCHES.get(way, _OTHER_BATCHES):
            found = lanes.run(Order(mix, max(self.given.pairs // 4, 1), size))
            if isinstance(found, Run):
                took[size] = found.seconds
            else:
                error = found
        if took:
            batches[way] = min(took, key=lambda size: took[size])
        else:
            errors[way] = error

    def _measure_peaks(self, ways: dict[str, Lanes]) -> None:
        for precision in {lanes.setup.precision for lanes in ways.values()}:
            found = matrix_peak(precision, self.given.device)
            self._peaks.setdefault(precision, []).append(found)
        self.result["matrix_peak"] = self._medians()

    def _medians(self) -> dict[str, float]:
        return {name: round(float(np.median(each)), 3) for name, each in self._peaks.items()}

    def _sweep(self) -> list[dict[str, Any]]:
        """Measure the engine with each budget of tokens on the first mix."""
        mix = self.given.mixes[0]
        with ExitStack() as stack:
            lanes = self._start(stack, (), self.given.sweep)
            rows = self._mix(mix, lanes, None)
        kept = ("pairs_per_s", "padding", "device_mb", "seconds", "error")
        return [
            {"max_tokens": size, **{key: found[key] for key in kept if key in found}}
            for size, found in zip(self.given.sweep, rows, strict=True)
        ]

    def _write(self) -> None:
        for file, content in (
            (self.given.json, json.dumps(self.result, indent=2)),
            (self.given.markdown, table(self.result)),
        ):
            if file:
                Path(file).write_text(content + "\n", encoding="utf-8")


def write_texts(setup: Setup, mixes: Sequence[str], pairs: int) -> dict[str, Any]:
    """Write MIX.json for each mix; return its lengths, int64[N], as the model is given them.

    Only words that are one token of the model's own tokenizer are used.
    """
    spec = ScorerSpec(setup.model, "", setup.max_length, max_tokens=setup.max_tokens)
    encoder = PairEncoder(Path(setup.model), spec)
    words = one_token_words()
    first, both = encoder.count_tokens(words.tolist(), [f"{word} {word}" for word in words])
    words = words[(first == 1) & (both == 2)]
    found = {}
    for mix in mixes:
        texts = made_up(lengths_of(mix, pairs, setup.max_length), words, encoder.special)
        Path(setup.texts, f"{mix}.json").write_text(json.dumps(texts), encoding="utf-8")
        found[mix] = encoder.encode(*texts).lengths
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.gpu", description=__doc__)
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--shape", choices=SHAPES, help="random weights (bge-reranker-v2-m3; on a CPU tiny)")
    add("--model", help="folder of a checkpoint, instead of a shape")
    add("--mixes", type=_names, default="web,512", help="of short, web, long, or a length [tokens]")
    add("--ways", type=_names, help=f"of {', '.join(_WAYS)} (all but engine_bf16)")
    add("--pairs", type=int, help="of each mix (8192; on a CPU 96)")
    add("--rounds", type=int, default=3, help="times each way is run, in turn")
    add("--max-length", type=int, default=512, help="longest pair [tokens]")
    add("--max-tokens", type=int, default=16_384, help="size of the engine's batches [tokens]")
    add("--window", type=int, help="pairs that the engine sorts at a time (2048; on a CPU 32)")
    add("--sweep", type=_names, default="4096,8192,16384,32768,65536", help="of --max-tokens")
    add("--profile", action=argparse.BooleanOptionalAction, default=True)
    add("--json", help="file to write everything to")
    add("--markdown", help="file to write the table to")
    given = parser.parse_args(argv)
    cpu = given.device == "cpu"
    given.shape = None if given.model else given.shape or ("tiny" if cpu else "bge-reranker-v2-m3")
    given.pairs = given.pairs or (96 if cpu else 8192)
    given.window = given.window or (32 if cpu else 2048)
    given.sweep = [int(size) for size in given.sweep]
    absent = {"engine_bf16"} | (set() if has_flash_attention() else {"sentence_transformers_fa2"})
    given.ways = given.ways or [way for way in _WAYS if way not in absent]
    if wrong := set(given.ways) - set(_WAYS):
        parser.error(f"--ways has no {', '.join(sorted(wrong))}; choose of {', '.join(_WAYS)}")
    for mix in given.mixes:
        if mix not in _MIXES and not (mix.isdigit() and 10 <= int(mix) <= given.max_length):
            parser.error(f"--mixes: {mix} is none of {', '.join(_MIXES)}, nor 10 to --max-length")
    return given


def _names(value: str) -> list[str]:
    return [name for name in value.split(",") if name]


def _say(what: str) -> None:
    print(f"[{time.monotonic() - _started:6.1f} s] {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
