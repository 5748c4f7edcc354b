from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jobs.runtime.errors import DONE, REFUSED
from jobs.try_model import main, split_texts
from tests.conftest import SENTENCES


def test_texts_stand_alone_and_options_have_names() -> None:
    words = ["--model.name", "m", "query", "--model.max_length=64", "doc 1", "doc 2"]
    assert split_texts(words) == (
        ["--model.name", "m", "--model.max_length=64"],
        ["query", "doc 1", "doc 2"],
    )


def test_scores_are_printed_best_first_with_bars(
    tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.name", str(tiny_bert), "--model.max_length", "64"]
    assert main([*options, SENTENCES[0], *SENTENCES[1:4]]) == DONE
    lines = capsys.readouterr().out.splitlines()
    logits = [float(line.split()[0]) for line in lines[1:4]]
    assert logits == sorted(logits, reverse=True)
    assert len(set(logits)) == 3
    assert "BertForSequenceClassification" in lines[-1]


def test_an_instruction_is_part_of_a_language_models_prompt(
    tiny_llm: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the query as well, it would be read twice."""
    options = ["--model.name", str(tiny_llm("qwen3")), "--model.template", "qwen3-reranker"]
    given = ["--model.query_instruction", "Find manuals.", "--model.max_length", "400"]
    tokens = []
    for more in (given, [*given[2:], "--model.query_instruction", ""]):
        assert main([*options, *more, "a query", "a document"]) == DONE
        tokens.append(int(capsys.readouterr().out.splitlines()[1].split()[-3]))
    own = "Given a web search query, retrieve relevant passages that answer the query"
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm("qwen3"))
    sizes = [len(tokenizer.tokenize(f"<Instruct>: {t}\n")) for t in ("Find manuals.", own)]
    assert tokens[1] - tokens[0] == sizes[1] - sizes[0]


def test_a_checksum_is_not_shown_as_a_score(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model.name", "embedded", "--model.backend", "stub", "q", "d"]) == REFUSED
    assert "model.backend=stub runs no model" in capsys.readouterr().err


def test_too_few_texts_and_a_missing_model_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["only a query", "--model.name", "m"]) == REFUSED
    assert main(["q", "d"]) == REFUSED
    said = capsys.readouterr().err
    assert "at least 2 are needed" in said
    assert "model.name is required" in said
