from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def run(body: str) -> subprocess.CompletedProcess[str]:
    imports = "import ctypes, time\nfrom udfs.limits import limited"
    code = f"{imports}\n{body}\nprint('went on')"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_a_call_that_never_gives_the_interpreter_back_ends_the_process() -> None:
    hung = run("text = 'a query'\nwith limited(0.3):\n    ctypes.PyDLL(None).sleep(50)")
    assert hung.returncode == 1
    assert "Timeout (0:00:00.300000)!" in hung.stderr
    assert "a query" not in hung.stderr + hung.stdout
    assert "went on" not in hung.stdout


def test_what_ends_in_time_goes_on_and_the_timer_is_off() -> None:
    for limit in (0.3, 0):
        ended = run(f"with limited({limit}):\n    pass\ntime.sleep(0.6)")
        assert (ended.returncode, ended.stdout) == (0, "went on\n")
