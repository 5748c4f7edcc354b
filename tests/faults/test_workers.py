"""Workers that hang, that run out of memory, that have no network, that find another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from jobs.runtime.errors import DONE, REFUSED, UNEXPECTED
from tests.faults import oracle
from tests.faults.conftest import Job
from tests.faults.daemon import Faults

pytestmark = pytest.mark.slow


def test_a_worker_that_hangs_is_replaced_and_costs_its_task(
    torch_job: Job, undisturbed_torch: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    """It hangs in C and keeps the interpreter's lock, so that no Python thread could end it."""
    out, tally, fired = tmp_path / "out", tmp_path / "tally", tmp_path / "fired"
    ended = torch_job.finish(out, Faults(str(tally), str(fired), hang=True), batching__timeout=10)
    assert fired.exists()
    assert "Timeout (0:00:10)!" in ended.err
    cost = oracle.check(out, undisturbed_torch, rows=pairs[1], tally=tally, same_batches=True)
    assert 0 < cost.scored_again <= 60
    assert cost.stored_again == 0


def test_pairs_that_never_fit_into_memory_are_rejected_and_tried_again_by_the_next_run(
    torch_job: Job, undisturbed_torch: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    """The error is torch's own: a CPU that cannot allocate."""
    out, fired = tmp_path / "out", tmp_path / "fired"
    torch_job.finish(out, Faults(fired=str(fired), too_large=40))
    batches = [int(line) for line in fired.read_text().splitlines()]
    assert max(batches) > 1, "the pair was alone from the start: nothing was halved"
    rejects = oracle.table(out, "rejects")
    lost = rejects[rejects["reason"] == "out_of_memory"]
    assert 0 < len(lost) < 60
    assert lost["detail"].str.fullmatch(r"tokens: \d+").all()
    ranked, whole = oracle.table(out, "ranked"), oracle.table(undisturbed_torch, "ranked")
    both = ranked.merge(whole, on=oracle.KEYS, suffixes=("", "_whole"))
    assert len(both) == len(ranked) == len(whole) - len(lost)
    assert (both["score"] - both["score_whole"]).abs().max() < oracle.TOLERANCE
    torch_job.finish(out)
    oracle.check(out, undisturbed_torch, rows=pairs[1])
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert counts["scored"] == len(lost)


def test_workers_without_a_network_score_everything(
    torch_job: Job, undisturbed_torch: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    out, tally = tmp_path / "out", tmp_path / "tally"
    torch_job.finish(out, Faults(str(tally), offline=True))
    assert Path(f"{tally}.guarded").exists()
    assert not Path(f"{tally}.refused").exists(), "a worker tried to reach another machine"
    oracle.check(out, undisturbed_torch, rows=pairs[1], tally=tally, same_batches=True)


def test_a_guarded_worker_would_be_caught(tmp_path: Path) -> None:
    """The guard of the test above can fail it."""
    import subprocess
    import sys

    code = (
        "import socket\nfrom tests.faults.daemon import _go_offline\n"
        f"_go_offline({str(tmp_path / 'tally')!r})\n"
        "for call in (lambda: socket.create_connection(('192.0.2.1', 80)),\n"
        "             lambda: socket.create_connection(('example.org', 80)),\n"
        "             lambda: socket.socket().connect(('192.0.2.1', 80))):\n"
        "    try:\n        call()\n    except OSError as error:\n        print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.count("must not use the network") == 3
    tried = (tmp_path / "tally.refused").read_text().split()
    assert tried == ["192.0.2.1", "example.org", "192.0.2.1"]


def test_a_model_that_changes_between_runs_opens_a_fingerprint_and_never_mixes(
    torch_job: Job,
    undisturbed_torch: Path,
    pairs: tuple[Path, int],
    tiny_bert: Path,
    tmp_path: Path,
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_bert, model)
    torch_job.finish(out, model__name=model)
    first = oracle.check(out, undisturbed_torch, rows=pairs[1], same_batches=True)
    kept = {file: file.read_bytes() for file in (out / "scores").rglob("*.parquet")}
    assert first.stored_again == 0

    weights = load_file(model / "model.safetensors")
    save_file(
        {k: v * 1.01 for k, v in weights.items()}, model / "model.safetensors", {"format": "pt"}
    )
    torch_job.finish(out, model__name=model)
    assert json.loads((out / "run.json").read_text())["counts"]["scored"] == 245
    assert {file: file.read_bytes() for file in kept} == kept
    different = oracle.table(out, "ranked").merge(
        oracle.table(undisturbed_torch, "ranked"), on=oracle.KEYS
    )
    assert (different["score_x"] - different["score_y"]).abs().max() > 0.01

    # Half a file is refused before anything starts, and the former output stays.
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    ended = torch_job.run(out, model__name=model)
    assert ended.code == REFUSED
    assert "copy it anew" in ended.err

    # And the first model finds its scores.
    torch_job.finish(out)
    oracle.check(out, undisturbed_torch, rows=pairs[1], same_batches=True)
    assert json.loads((out / "run.json").read_text())["counts"]["scored"] == 0


def test_a_model_that_changes_under_a_run_is_refused_by_the_workers(
    torch_job: Job,
    undisturbed_torch: Path,
    pairs: tuple[Path, int],
    tiny_bert: Path,
    tmp_path: Path,
) -> None:
    """A bit flips after the driver has hashed the folder; nothing of it reaches the store."""
    from tests.faults.launch import Driver

    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_bert, model)
    ended = torch_job.run(
        out, None, Driver(flip=str(model / "model.safetensors")), model__name=model
    )
    assert ended.code == UNEXPECTED
    assert "copy the folder anew, and change no model while a job uses it" in ended.err
    assert not list((out / "scores").rglob("*.parquet"))
    shutil.copytree(tiny_bert, model, dirs_exist_ok=True)
    assert torch_job.finish(out, model__name=model).code == DONE
    oracle.check(out, undisturbed_torch, rows=pairs[1], same_batches=True)
