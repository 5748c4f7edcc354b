"""The night that cron runs (conf/schedule/nightly.sh): exit codes are the contract."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "conf" / "schedule" / "nightly.sh"
NIGHT = ["rerank nights", "evaluate verdicts", "rerank labels"]


def night(folder: Path, *codes: int, **env: str) -> tuple[int, list[str]]:
    """Run a night whose commands end with these codes, in turn; return its code and the calls."""
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    (folder / "calls").write_text("")
    fake = folder / "fake.sh"
    fake.write_text(
        f'cd {folder}\necho "$*" >>calls\ncode=$(head -n 1 codes)\n'
        'sed 1d codes >rest; mv rest codes\nexit "${code:-0}"\n'
    )
    given = {"DATA": str(folder), "PAUSE": "0", "TRIES": "3", "PATH": "/usr/bin:/bin", **env}
    given |= {name: f"sh {fake} {name.lower()}" for name in ("RERANK", "EVALUATE", "TRACK")}
    ended = subprocess.run(["sh", str(SCRIPT), "2026-03-01"], env=given, check=False, timeout=60)
    calls = []
    for words in (line.split() for line in (folder / "calls").read_text().splitlines()):
        where = Path(words[1] if words[0] == "track" else words[words.index("--output.path") + 1])
        calls.append(f"{words[0]} {where.relative_to(folder).parts[0]}")
    return ended.returncode, calls


def test_rerank_judge_relabel(tmp_path: Path) -> None:
    assert night(tmp_path, 0, 0, 0) == (0, NIGHT)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 137])
def test_a_failure_ends_the_night_with_its_code(code: int, tmp_path: Path) -> None:
    assert night(tmp_path, code) == (code, NIGHT[:1])
    assert night(tmp_path, 0, code) == (code, NIGHT[:2])


def test_what_was_not_tracked_is_tracked_again_and_nothing_else(tmp_path: Path) -> None:
    tries = ["track nights"] * 3
    assert night(tmp_path, 5, 5, 0) == (0, [NIGHT[0], *tries[:2], *NIGHT[1:]])
    # It holds up nothing, and is said at the end.
    assert night(tmp_path, 5, 5, 5, 5) == (5, [NIGHT[0], *tries, *NIGHT[1:]])
    assert night(tmp_path, 5, 5, 5, 5, 4) == (4, [NIGHT[0], *tries, NIGHT[1]])


def test_values_with_blanks_stay_whole(tmp_path: Path) -> None:
    night(tmp_path, GATE="nDCG@10 >= 0.3")
    (judged,) = (line for line in (tmp_path / "calls").read_text().splitlines() if "gate" in line)
    assert "--evaluation.gate nDCG@10 >= 0.3 --mlflow.experiment nightly" in judged
