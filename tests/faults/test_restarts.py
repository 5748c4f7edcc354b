"""What may be different when the same command is given again."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.faults import oracle
from tests.faults.conftest import KILLED, Job
from tests.faults.daemon import Faults
from tests.faults.launch import Driver

pytestmark = pytest.mark.slow


def test_an_input_that_changes_between_a_crash_and_the_restart(
    job: Job, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    """Scores are kept by content: what changed is scored, and nothing old gets into the result."""
    out, tally, source = tmp_path / "out", tmp_path / "tally", tmp_path / "pairs.jsonl"
    lines = pairs[0].read_text("utf-8").splitlines()
    source.write_text("\n".join(lines), "utf-8")
    slow, driver = Faults(str(tally), pace=0.1), Driver("tasks:4", str(out / "scores"))
    assert job.run(out, slow, driver, input__path=source).code == KILLED
    kept = len(oracle.stored(out))
    assert 0 < kept < 245

    generator = random.Random(5)
    changed = [json.loads(line) for line in lines[:245]]
    for row in generator.sample(changed, 20):
        row["body"] += " It has been written anew."
    del changed[100:110]
    changed += [{**changed[i], "doc_id": f"new-{i}", "body": f"new {i}"} for i in range(10)]
    generator.shuffle(changed)
    source.write_text("\n".join(map(json.dumps, changed)), "utf-8")
    job.finish(tmp_path / "undisturbed", input__path=source)
    job.finish(out, Faults(str(tally)), input__path=source)
    oracle.check(out, tmp_path / "undisturbed", rows=245)
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert counts["from_store"] + counts["scored"] == counts["distinct"] == 245
    assert 0 < counts["from_store"] <= kept


def test_what_decides_a_score_opens_a_fingerprint_and_the_old_scores_stay(
    job: Job, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job.finish(out)
    kept = {file: file.read_bytes() for file in (out / "scores").rglob("*.parquet")}
    prints = {json.loads((out / "run.json").read_text())["fingerprint"]}
    for keys in ({"model__precision": "bf16"}, {"model__max_length": 60}):
        job.finish(out, **keys)
        record = json.loads((out / "run.json").read_text())
        assert record["counts"]["from_store"] == 0
        prints.add(record["fingerprint"])
    assert len(prints) == 3
    assert {file: file.read_bytes() for file in kept} == kept
    job.finish(out)
    oracle.check(out, undisturbed, rows=pairs[1], same_batches=True)
    assert json.loads((out / "run.json").read_text())["counts"]["scored"] == 0


def test_two_drivers_on_one_output_and_store_leave_one_whole_result(
    job: Job, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    """They publish at the same moment, with results that can be told apart."""
    meeting, tally = tmp_path / "meeting", tmp_path / "tally"
    meeting.mkdir()
    both = Job(tmp_path / "a", job.keys), Job(tmp_path / "b", job.keys)
    for one in both:
        one.folder.mkdir()
    out, driver = tmp_path / "out", Driver(meet=str(meeting))
    cut = [both[0].start(out, Faults(str(tally)), driver, ranking__top_k=1)]
    cut.append(both[1].start(out, Faults(str(tally)), driver, ranking__top_k=2))
    for one, process in zip(both, cut, strict=True):
        ended = one.end(out, process)
        assert ended.code == 0, ended.err[-4000:]
    assert len(list(meeting.iterdir())) == 2
    record = json.loads((out / "run.json").read_text())
    top_k = record["config"]["ranking"]["top_k"]
    ranked = oracle.table(out, "ranked")
    assert len(ranked) == record["counts"]["ranked"] == 28 * top_k
    assert len(oracle.table(out, "rejects")) == record["counts"]["rejected"] == 2
    assert not (out / "_work").exists()

    job.finish(out)
    cost = oracle.check(out, undisturbed, rows=pairs[1], tally=tally)
    assert cost.stored_again <= 245
    assert json.loads((out / "run.json").read_text())["counts"]["scored"] == 0
