"""Tuning without Spark: which settings, in which order, and which of them is recommended."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jobs.config import BatchingConfig, TuneConfig
from jobs.runtime.errors import RefusedError
from jobs.scoring.token_lengths import SampledLengths
from jobs.tune.sample import first_queries
from jobs.tune.settings import Setting, batch_sizes, engines, lengths_to_try, make_grid
from jobs.tune.sweep import NOT_MEASURED, Row, pareto, recommend, sweep
from tests.unit.test_parity import DOCS, QUERIES
from udfs.devices import TaskSlot
from udfs.scorers.base import OUT_OF_MEMORY
from udfs.spec import ScorerSpec
from udfs.trial import KILLED, Trial, in_fresh_process, measure

TUNE = TuneConfig()
LENGTHS = SampledLengths(np.full(100, 10), np.arange(50, 150), 3, "longest_first")
SLOT = TaskSlot(1)


def grid(**keys: Any) -> list[Setting]:
    config = TuneConfig(**keys)
    given = engines(config, "cpu-bf16", has_onnx=False)
    tried = lengths_to_try(config, LENGTHS, 512)
    return make_grid(config, BatchingConfig(), given, tried, on_gpu=False)


def test_lengths_are_the_95th_percentile_and_the_powers_of_two_around_the_longest() -> None:
    assert lengths_to_try(TUNE, LENGTHS, 512) == (128, 160, 256)
    assert lengths_to_try(TUNE, LENGTHS, 126) == (64, 126)
    assert lengths_to_try(TuneConfig(max_lengths=[96, 1024]), LENGTHS, 512) == (96, 512)


def test_onnxruntime_is_tried_by_itself_only_where_torch_has_nothing_better() -> None:
    assert ("onnxruntime", "int8") in engines(TUNE, "cpu", has_onnx=True)
    assert ("onnxruntime", "int8") not in engines(TUNE, "cpu", has_onnx=False)
    assert ("onnxruntime", "int8") not in engines(TUNE, "cpu-bf16", has_onnx=True)
    named = TuneConfig(precisions=["onnxruntime:int8", "bf16"])
    assert engines(named, "cpu-bf16", has_onnx=True) == (
        ("torch", "fp32"), ("onnxruntime", "int8"), ("torch", "bf16"),
    )  # fmt: skip


def test_the_grid_starts_with_float32_at_the_longest_and_with_what_differs_least_from_it() -> None:
    found = grid()
    assert found[0] == Setting("torch", "fp32", 256, 4096, 512)
    assert len(found) == len(set(found)) == 2 * 3 * 3
    apart = [sum(getattr(s, k) != getattr(found[0], k) for k in
                 ("precision", "max_length", "max_tokens")) for s in found]  # fmt: skip
    assert apart == sorted(apart)
    assert found == grid() != grid(seed=1)


def test_a_batch_of_n_pairs_is_limited_by_nothing_else() -> None:
    assert [(s.max_pairs, s.max_tokens) for s in batch_sizes(TUNE, grid()[0])] == [
        (1, 256), (8, 2048), (32, 8192), (128, 32768),
    ]  # fmt: skip


def sample(queries: int = 8, each: int = 5) -> pd.DataFrame:
    rows = [(str(at // each), str(at), "t", "t", float(at % each == 0))
            for at in range(queries * each)]  # fmt: skip
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "query", "doc", "grade"])


def test_a_part_of_a_sample_is_whole_queries() -> None:
    whole = sample()
    assert [len(first_queries(whole, n)) for n in (0, 4, 5, 9, 10, 40, 99)] == [
        5,
        5,
        5,
        5,
        10,
        40,
        40,
    ]


class Machine:
    """A machine whose speed is known: it tells the time, and what it was asked to measure."""

    def __init__(self, fails: Sequence[str] = (), seconds_per_pair: float = 0.01) -> None:
        self.now, self.asked, self.fails = 0.0, list[Setting](), fails
        self.seconds_per_pair = seconds_per_pair

    def measure(self, setting: Setting, pairs: pd.DataFrame) -> Trial:
        self.asked.append(setting)
        seconds = len(pairs) * self.seconds_per_pair * (0.5 if setting.precision == "bf16" else 1)
        self.now += seconds
        rising = np.arange(len(pairs), dtype=np.float32)
        if setting.precision in self.fails:
            return Trial(OUT_OF_MEMORY, np.full(len(pairs), np.nan, np.float32))
        # Cut to 128 tokens, every query's order is turned around.
        logit = -rising if setting.max_length == 128 else rising
        return Trial(
            "ok", logit, tokens=100, seconds=seconds, memory_mb=float(setting.max_tokens),
            pair_ms=np.ones(len(pairs), np.float32), batch_ms=(1.0,),
        )  # fmt: skip

    def sweep(
        self, seconds: float, config: TuneConfig = TUNE
    ) -> tuple[list[Row], int, pd.DataFrame]:
        config = config.model_copy(update={"seconds": seconds})
        return sweep(config, grid(), sample(), self.measure, lambda: self.now)


def test_every_setting_is_measured_once_and_the_best_again_until_time_is_up() -> None:
    machine = Machine()
    rows, reference_at, pairs = machine.sweep(60.0)
    assert (len(rows), reference_at, len(pairs)) == (18 + 4, 0, 40)
    assert min(row["runs"] for row in rows) == 1
    best = [row for row in rows if row["runs"] > 1]
    assert 1 < len(best) <= 6 and all(row["precision"] == "bf16" for row in best)
    runs = [row["runs"] for row in best]
    assert max(runs) - min(runs) <= 1, "not in turns"
    assert 60.0 <= machine.now < 61.0


def test_a_slow_model_is_measured_on_fewer_pairs_and_what_is_left_is_said() -> None:
    rows, _, pairs = Machine(seconds_per_pair=1.0).sweep(300.0)
    assert len(pairs) == 5
    assert all(row["outcome"] in ("ok", NOT_MEASURED) for row in rows)
    assert Machine(seconds_per_pair=9.0).sweep(10.0)[0][1]["runs"] == 0


def test_what_does_not_fit_is_recorded_and_costs_nothing_else() -> None:
    rows, _, _ = Machine(fails=["bf16"]).sweep(60.0)
    assert {row["outcome"] for row in rows if row["precision"] == "bf16"} == {OUT_OF_MEMORY}
    assert recommend(rows, TUNE)[0]["precision"] == "fp32"


def test_without_float32_the_next_setting_is_the_reference() -> None:
    rows, at, _ = Machine(fails=["fp32"]).sweep(60.0)
    assert rows[at]["precision"] == "bf16"
    with pytest.raises(RefusedError, match=r"none of 18 settings.*out_of_memory"):
        Machine(fails=["fp32", "bf16"]).sweep(60.0)


def row(**changes: Any) -> dict[str, Any]:
    return {
        "backend": "torch", "precision": "bf16", "max_length": 256, "max_tokens": 4096,
        "max_pairs": 512, "of_batches": False, "outcome": "ok", "pairs_per_s": 100.0,
        "kendall_tau": 0.98, "ndcg_delta": 0.0, "memory_mb": 900.0, "device_memory_mb": None,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    "worse",
    [
        row(pairs_per_s=90.0),
        row(pairs_per_s=200.0, kendall_tau=0.85),
        row(pairs_per_s=200.0, ndcg_delta=-0.006),
        row(pairs_per_s=200.0, outcome=OUT_OF_MEMORY),
        row(pairs_per_s=200.0, of_batches=True),
        row(pairs_per_s=102.0, max_length=128),  # hardly faster, and it cuts more
        row(pairs_per_s=102.0, memory_mb=1900.0),
    ],
)
def test_the_recommended_setting_is_fast_faithful_and_small(worse: dict[str, Any]) -> None:
    good = row()
    assert recommend([worse, good], TUNE)[0] is good
    assert recommend([good, worse], TUNE)[0] is good


def test_without_labels_agreement_alone_decides_and_nothing_may_be_left() -> None:
    unlabelled = row(ndcg_delta=None)
    assert recommend([unlabelled], TUNE) == [unlabelled]
    assert recommend([row(kendall_tau=0.5)], TUNE) == []


def test_the_front_is_what_nothing_beats_in_both() -> None:
    fast, fair, exact = (
        row(pairs_per_s=speed, kendall_tau=tau) for speed, tau in ((9, 0.8), (5, 0.9), (2, 1.0))
    )
    beaten = row(pairs_per_s=4, kendall_tau=0.85)
    assert pareto([beaten, exact, fast, fair]) == [fast, fair, exact]


def killed(*_: Any) -> Trial:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def without_memory(*_: Any) -> Trial:
    import torch

    torch.empty(2**60)
    raise AssertionError


def broken(*_: Any) -> Trial:
    raise ValueError("a text that must not travel")


def test_a_trial_is_what_a_scorer_does_in_this_process(tiny_bert: Path) -> None:
    spec = ScorerSpec(str(tiny_bert), "", max_length=64, max_tokens=512, window=20)
    here = measure(tiny_bert, spec, SLOT, QUERIES, DOCS)
    there = in_fresh_process(tiny_bert, spec, SLOT, QUERIES, DOCS)
    np.testing.assert_allclose(there.logit, here.logit, atol=1e-5)
    assert there.outcome == "ok" and there.tokens == here.tokens and there.padding > 0
    assert there.seconds > 0 and there.load_seconds > 0 and 50 < there.memory_mb < 5000
    assert sum(there.batch_ms) == pytest.approx(there.pair_ms.sum(), rel=1e-3)


@pytest.mark.parametrize(
    ("how", "outcome"),
    [(killed, KILLED), (without_memory, OUT_OF_MEMORY), (broken, "ValueError")],
)
def test_a_process_that_dies_is_an_answer(how: Any, outcome: str, tiny_bert: Path) -> None:
    trial = in_fresh_process(tiny_bert, ScorerSpec("", ""), SLOT, ["q"] * 3, ["d"] * 3, how)
    assert trial.outcome == outcome
    assert trial.logit.shape == (3,) and np.isnan(trial.logit).all()
