"""jobs.rerank with a causal language model, through `main`, the store and its exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from jobs.runtime.errors import DONE, REFUSED
from jobs.scoring.prompts import read_template
from tests.sample import SAMPLE
from tests.spark.conftest import Job
from udfs.devices import TaskSlot
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import ScorerSpec


def test_a_table_is_reranked_by_a_language_model_and_nothing_is_scored_twice(
    job: Job, tiny_llm: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "out", tiny_llm("qwen3")
    few = tmp_path / "few.jsonl"
    few.write_text("".join(SAMPLE.read_text("utf-8").splitlines(keepends=True)[:60]), "utf-8")

    def counts() -> dict[str, int]:
        found: dict[str, int] = json.loads((out / "run.json").read_text())["counts"]
        return found

    asked: dict[str, object] = {"model__name": folder, "model__max_length": 400}
    assert job(out, input__path=few, **asked) == REFUSED
    assert "set model.template to qwen3-reranker" in capsys.readouterr().err
    asked |= {"model__template": "qwen3-reranker", "model__ship": "archive"}
    assert job(out, input__path=few, **asked, dry_run="true") == DONE
    said = capsys.readouterr().out
    assert re.search(r"to score +60 pairs", said) and "tokens" in said
    assert job(out, input__path=few, **asked) == DONE
    assert counts()["scored"] == 60

    rows = pd.read_json(few, lines=True)
    docs = [f"{t}\n{b}" if t else b for t, b in zip(rows["title"], rows["body"], strict=True)]
    prompt = read_template("qwen3-reranker").prompt("")
    spec = ScorerSpec(str(folder), "", max_length=400, truncation="document", prompt=prompt)
    alone = Scorer.load(folder, spec, TaskSlot(1)).score(rows["query"].tolist(), docs)
    ranked = pq.read_table(out / "ranked").to_pandas()
    both = rows[["query_id", "doc_id"]].assign(alone=alone.logit, cut=alone.truncated)
    both = both.merge(ranked, on=["query_id", "doc_id"])
    assert len(both) == 60 and 0 < both["cut"].sum() < 60
    np.testing.assert_allclose(both["score"], both["alone"], atol=1e-4)

    # The rest of the table, then all of it again: pairs in the store are not asked for.
    assert job(out, **asked) == DONE
    assert (counts()["from_store"], counts()["scored"]) == (60, 185)
    assert job(out, **asked) == DONE
    assert counts()["scored"] == 0
    # Another instruction is another score.
    assert job(out, input__path=few, **asked, model__query_instruction="Find manuals.") == DONE
    assert (counts()["from_store"], counts()["scored"]) == (0, 60)
    other = pq.read_table(out / "ranked").to_pandas().merge(ranked, on=["query_id", "doc_id"])
    assert (other["score_x"] - other["score_y"]).abs().max() > 1e-3


def test_rows_have_instructions_of_their_own(
    job: Job, tiny_llm: Callable[[str], Path], tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()[:30]]
    queries = sorted({str(row["query_id"]) for row in lines})
    given = dict(zip(queries, ["Find manuals.", None, "Find traps."], strict=False))
    few = tmp_path / "few.jsonl"
    rows = [{**row, "task": given.get(str(row["query_id"]))} for row in lines]
    few.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    asked: dict[str, object] = {
        "input__path": few, "model__name": tiny_llm("qwen3"), "model__max_length": 400,
        "model__template": "qwen3-reranker",
    }  # fmt: skip

    def scores(name: str, **more: object) -> pd.Series:
        assert job(tmp_path / name, **asked, **more) == DONE
        ranked = pq.read_table(tmp_path / name / "ranked").to_pandas()
        return ranked.set_index(["query_id", "doc_id"])["score"].sort_index()

    by_row, default = scores("rows", input__instruction="task"), scores("default")
    manuals = scores("manuals", model__query_instruction="Find manuals.")
    assert len(queries) > 1
    for query in queries:
        alike = manuals if given.get(query) == "Find manuals." else default
        differs = by_row[query] - alike[query]
        if given.get(query) == "Find traps.":
            assert differs.abs().max() > 1e-3
        else:
            np.testing.assert_allclose(differs, 0, atol=1e-4)
