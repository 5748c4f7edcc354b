from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from jobs.output.summary import closing_summary
from tests.conftest import ROOT
from udfs.limits import Peak, peak_process_mb
from udfs.udf import PeakParam

HERE, GPU = Peak(900.0, None, 2.0), Peak(700.0, 2210.0, 3.0)


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Peak(), HERE, HERE),
        (HERE, GPU, Peak(900.0, 2210.0, 3.0)),
        (GPU, Peak(650.0, 3000.0), Peak(700.0, 3000.0, 3.0)),
    ],
)
def test_of_two_peaks_the_larger_counts_part_by_part(one: Peak, other: Peak, both: Peak) -> None:
    larger = PeakParam().addInPlace
    assert larger(one, other) == both == larger(other, one)


@pytest.mark.skipif(not Path("/proc").exists(), reason="memory is read from /proc")
def test_a_peak_is_not_forgotten_when_memory_is_given_back() -> None:
    # In a process of its own, as this one may have held more before.
    program = """
from udfs.limits import peak
found = [peak().process_mb]
filled = bytearray(b"x") * (200 * 2**20)
found.append(peak().process_mb)
del filled
print(*found, peak().process_mb)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    before, most, after = map(float, ended.stdout.split())
    assert most > before + 100
    assert after > most - 1  # the kernel counts in rough steps


def test_without_proc_the_system_is_asked(tmp_path: Path) -> None:
    unreadable = peak_process_mb(tmp_path / "nothing")
    status = tmp_path / "status"
    status.write_text("Name: python\nVmHWM:\t  204800 kB\n", "ascii")
    assert peak_process_mb(status) == 200.0
    assert unreadable == pytest.approx(peak_process_mb(), rel=0.2)


@pytest.mark.parametrize(("share", "warned"), [(None, False), (0.01, False), (0.031, True)])
def test_a_model_that_overflows_is_told_of(share: float | None, warned: bool) -> None:
    """Scored twice, it would be slower than in fp32 without a word."""
    rates = {"pairs_per_s": None, "top1_change_rate": None, "rescored_share": share}
    record = {
        "counts": defaultdict(int), "rates": rates, "reject_reasons": {},
        "config": {"model": {"max_length": 512}}, "model": {"precision": "fp16"},
    }  # fmt: skip
    said = closing_summary(record, None, {})
    warning = "warning: fp16 gave no number for 3.1% of the pairs of a process"
    assert (warning in said) is warned
