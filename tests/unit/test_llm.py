"""Causal language models as rerankers: each card's own loop of transformers is the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.runtime.errors import RefusedError
from jobs.scoring.prompts import TEMPLATES, read_template
from tests.conftest import LLMS, SENTENCES
from udfs.devices import TaskSlot
from udfs.forward.base import ModelError
from udfs.forward.heads import AnsweringModel
from udfs.forward.transformers import PaddedModel
from udfs.scorers.base import OK
from udfs.scorers.cross_encoder import Scorer, check_model
from udfs.spec import ScorerSpec

QUERIES = [SENTENCES[i % 7][: 9 + 7 * (i % 5)] for i in range(24)]
DOCS = [SENTENCES[(3 * i) % 8] * (1 + i % 9) for i in range(24)]
MAX_LENGTH = {"qwen3-reranker": 400, "bge-gemma": 250, "mxbai-v2": 400}
Recipe = Callable[[Any, Sequence[str], Sequence[str], int, str], list[list[int]]]


def spec(folder: Path, template: str, instruction: str = "", **changes: object) -> ScorerSpec:
    longest = MAX_LENGTH.get(template, 400)
    given = {"max_length": longest, "truncation": "document", "device": "cpu", **changes}
    prompt = read_template(template).prompt(instruction)
    return ScorerSpec(str(folder), "", prompt=prompt, **given)  # type: ignore[arg-type]


def load(folder: Path, template: str, *more: str, **changes: object) -> Scorer:
    return Scorer.load(folder, spec(folder, template, *more, **changes), TaskSlot(cpus=2))


def qwen3(
    tokenizer: Any, queries: Sequence[str], docs: Sequence[str], max_length: int, task: str
) -> list[list[int]]:
    """Qwen3-Reranker's card."""
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    task = task or "Given a web search query, retrieve relevant passages that answer the query"
    before, after = (tokenizer.encode(x, add_special_tokens=False) for x in (prefix, suffix))
    pairs = [
        f"<Instruct>: {task}\n<Query>: {q}\n<Document>: {d}"
        for q, d in zip(queries, docs, strict=True)
    ]
    rows = tokenizer(
        pairs, truncation="longest_first", max_length=max_length - len(before) - len(after),
        add_special_tokens=False,
    )["input_ids"]  # fmt: skip
    return [before + row + after for row in rows]


def bge(
    tokenizer: Any, queries: Sequence[str], docs: Sequence[str], max_length: int, task: str
) -> list[list[int]]:
    """bge-reranker-v2-gemma's card, its max_length without what it appends."""
    task = task or (
        "Given a query A and a passage B, determine whether the passage contains an answer to the "
        "query by providing a prediction of either 'Yes' or 'No'."
    )
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    end = ids("\n") + ids(task)
    rows = []
    for query, doc in zip(queries, docs, strict=True):
        first = [tokenizer.bos_token_id, *ids(f"A: {query}")[: max_length * 3 // 4]]
        second = ids("\n") + ids(f"B: {doc}")
        rows.append(first + second[: max_length - len(end) - len(first)] + end)
    return rows


def mxbai(
    tokenizer: Any, queries: Sequence[str], docs: Sequence[str], max_length: int, task: str
) -> list[list[int]]:
    """The package of mxbai-rerank-v2's card, its max_length without its template."""
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    before = ids(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n"
    )
    end = (
        ids("\n")
        + ids(
            "You are a search relevance expert who evaluates how well documents match search "
            "queries. For each query-document pair, carefully analyze the semantic relationship "
            "between them, then provide your binary relevance judgment (0 for not relevant, 1 for "
            "relevant).\nRelevance:"
        )
        + ids("<|im_end|>\n<|im_start|>assistant\n")
    )
    rows = []
    for query, doc in zip(queries, docs, strict=True):
        asked = f"instruction: {task}\nquery: {query}" if task else f"query: {query}"
        first = before + ids(asked)[: max_length * 3 // 4]
        second = ids("\n") + ids(f"document: {doc}")
        rows.append(first + second[: max_length - len(end) - len(first)] + end)
    return rows


RECIPES: dict[str, tuple[Recipe, str, str]] = {
    "qwen3-reranker": (qwen3, "yes", "no"),
    "bge-gemma": (bge, "Yes", ""),
    "mxbai-v2": (mxbai, "1", "0"),
}


def by_card(
    folder: Path, template: str, queries: Sequence[str], docs: Sequence[str],
    *, task: str = "", side: str = "left",
) -> NDArray[np.float64]:  # fmt: skip
    """Score batches of 5 in the order given, padded on a side, as the card does in float32."""
    recipe, yes, no = RECIPES[template]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side=side)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = recipe(tokenizer, queries, docs, MAX_LENGTH[template], task)
    scores = []
    for at in range(0, len(rows), 5):
        batch = tokenizer.pad({"input_ids": rows[at : at + 5]}, padding=True, return_tensors="pt")
        if side == "left":
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = model(**batch).logits
        last = -1 if side == "left" else batch["attention_mask"].sum(1) - 1
        logits = logits[torch.arange(len(logits)), last].float()
        score = logits[:, tokenizer.convert_tokens_to_ids(yes)]
        if no:
            score = score - logits[:, tokenizer.convert_tokens_to_ids(no)]
        scores += score.tolist()
    return np.array(scores)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "template"), LLMS.items())
def test_scores_are_those_of_the_cards_loop(
    tiny_llm: Callable[[str], Path], name: str, template: str, side: str
) -> None:
    folder = tiny_llm(name)
    expected = by_card(folder, template, QUERIES, DOCS, side=side)
    assert expected.std() > 0.1
    scores = load(folder, template, max_tokens=2000).score(QUERIES, DOCS)
    assert 0 < scores.truncated.sum() < len(DOCS)
    np.testing.assert_allclose(scores.logit, expected, atol=1e-4)


@pytest.mark.parametrize(("name", "template"), LLMS.items())
def test_an_instruction_takes_the_place_of_the_templates_own(
    tiny_llm: Callable[[str], Path], name: str, template: str
) -> None:
    folder, task = tiny_llm(name), "Find the manual of the device."
    expected = by_card(folder, template, QUERIES, DOCS, task=task)
    scores = load(folder, template, task).score(QUERIES, DOCS)
    np.testing.assert_allclose(scores.logit, expected, atol=1e-4)
    own = load(folder, template).score(QUERIES, DOCS)
    assert np.abs(own.logit - scores.logit).max() > 1e-3
    other = spec(folder, template, task).fingerprint()
    assert other != spec(folder, template).fingerprint()


@pytest.mark.parametrize(("name", "template"), LLMS.items())
def test_the_suffix_survives_a_document_that_is_far_too_long(
    tiny_llm: Callable[[str], Path], name: str, template: str
) -> None:
    """sentence-transformers#3787: truncation took the suffix, and scores turned random."""
    folder = tiny_llm(name)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    word = " ".join(SENTENCES[:4])
    doc = " ".join([word] * (1 + 3000 // len(tokenizer.tokenize(word))))
    assert len(tokenizer.tokenize(doc)) >= 3000
    scorer = load(folder, template, max_length=512)
    encoded = scorer.encode([QUERIES[0]], [doc])
    assert encoded.lengths.tolist() == [512] and encoded.truncated.tolist() == [True]
    suffix = read_template(template).suffix
    end = [i for piece in suffix for i in tokenizer.encode(piece, add_special_tokens=False)]
    if template == "bge-gemma":
        end = tokenizer.encode("\n", add_special_tokens=False)
        task = read_template(template).instruction
        end += tokenizer.encode(task, add_special_tokens=False)
    assert encoded.ids[-len(end) :].tolist() == end
    # The document cut by hand.
    recipe = RECIPES[template][0]
    (whole,) = recipe(tokenizer, [QUERIES[0]], [doc], 10_000, "")
    kept = whole[: 512 - len(end)] + whole[len(whole) - len(end) :]
    assert len(whole) > 3000
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([kept])).logits[0, -1]
    _, yes, no = RECIPES[template]
    expected = logits[tokenizer.convert_tokens_to_ids(yes)]
    expected = expected - logits[tokenizer.convert_tokens_to_ids(no)] if no else expected
    assert scorer.score_encoded(encoded).logit[0] == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize(("name", "template"), LLMS.items())
def test_batches_and_their_order_do_not_change_a_score(
    tiny_llm: Callable[[str], Path], name: str, template: str
) -> None:
    folder = tiny_llm(name)
    alone = load(folder, template, max_pairs=1).score(QUERIES, DOCS)
    order = np.random.default_rng(5).permutation(len(DOCS))
    mixed = load(folder, template, max_tokens=4096).score(
        [QUERIES[i] for i in order], [DOCS[i] for i in order]
    )
    np.testing.assert_allclose(mixed.logit, alone.logit[order], atol=1e-4)
    assert (mixed.n_padded > 0).any() and not alone.n_padded.any()


def test_a_query_that_is_far_too_long_is_cut_and_keeps_its_end(
    tiny_llm: Callable[[str], Path],
) -> None:
    folder = tiny_llm("qwen3")
    scorer = load(folder, "qwen3-reranker")
    pairs = scorer.encode([SENTENCES[0] * 60], ["a document"])
    assert pairs.lengths[0] <= 400 and pairs.truncated[0]
    text = AutoTokenizer.from_pretrained(folder).decode(pairs.ids)
    assert "\n<Document>: a document<|im_end|>" in text
    assert text.endswith("<think>\n\n</think>\n\n")


def test_no_logit_but_those_of_the_answers_is_computed(tiny_llm: Callable[[str], Path]) -> None:
    scorer = load(tiny_llm("qwen3"), "qwen3-reranker", precision="bf16")
    model = scorer._model
    assert isinstance(model, PaddedModel) and isinstance(model.model, AnsweringModel)
    shapes = []
    head = model.model._model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _inputs, out: shapes.append(tuple(out.shape)))
    scores = scorer.score(QUERIES[:5], DOCS[:5])
    assert shapes == [(5, 1, 2)] and head.weight.shape[0] == 2
    assert head.weight.dtype == torch.float32 and (scores.status == OK).all()


def test_half_precision_keeps_the_scores_apart(tiny_llm: Callable[[str], Path]) -> None:
    folder = tiny_llm("qwen3")
    exact = load(folder, "qwen3-reranker").score(QUERIES, DOCS).logit
    half = load(folder, "qwen3-reranker", precision="bf16").score(QUERIES, DOCS).logit
    np.testing.assert_allclose(half, exact, atol=0.2)
    assert len(set(half.tolist())) == len(set(exact.tolist()))


def test_memory_that_runs_out_halves_a_batch(
    tiny_llm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = load(tiny_llm("qwen2"), "mxbai-v2")
    expected = scorer.score(QUERIES, DOCS).logit
    forward = PaddedModel.forward

    def full(self: PaddedModel, batch: Any) -> Any:
        if len(batch.lengths) > 3:
            raise torch.OutOfMemoryError("no memory left")
        return forward(self, batch)

    monkeypatch.setattr(PaddedModel, "forward", full)
    scores = scorer.score(QUERIES, DOCS)
    assert scorer.halvings > 0 and (scores.status == OK).all()
    np.testing.assert_allclose(scores.logit, expected, atol=1e-4)


def test_the_driver_finds_out_whether_a_prompt_can_be_asked(
    tiny_llm: Callable[[str], Path],
) -> None:
    folder = tiny_llm("qwen3")
    check_model(folder, spec(folder, "qwen3-reranker"))
    with pytest.raises(ModelError, match=r"max_length=64 is too short for a prompt of \d+ tokens"):
        check_model(folder, spec(folder, "qwen3-reranker", max_length=64))


OWN = """
prefix: "<|im_start|>user\\n"
query: "Q: {query}\\n"
document: "D: {document}"
suffix: "<|im_end|>\\n<|im_start|>assistant\\n"
positive: "yes"
negative: "no"
"""


def test_a_template_of_ones_own(tiny_llm: Callable[[str], Path], tmp_path: Path) -> None:
    file, folder = tmp_path / "own.yaml", tiny_llm("qwen3")
    file.write_text(OWN)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = "<|im_start|>user\nQ: fleas\nD: a flea<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1]
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    scores = load(folder, str(file)).score(["fleas"], ["a flea"])
    assert scores.logit[0] == pytest.approx((logits[yes] - logits[no]).item(), abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ('"yes"', "", "positive.*Input should be"),
        ('"yes"', "yes", "positive Input.*tokens such as yes and 1 need quotes"),
        ("{query}", "", "has to hold {query} once"),
        ("{document}", "{document} and more", "document has to end with {document}"),
        ("suffix", "postfix", "postfix Extra inputs"),
        ("Q: {query}\\n", "Q: {query} {query}", "has to hold {query} once"),
        ('"Q: {query}\\n"', "[]", "has to hold {query} once"),
        ('"no"', "0", "negative Input should be a valid string"),
        (OWN, "[", "nor a YAML file that can be read"),
        (OWN, "", "Input should be"),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused(
    tmp_path: Path, wrong: str, right: str, said: str
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OWN.replace(wrong, right))
    with pytest.raises(RefusedError, match=said):
        read_template(str(file))


def test_a_template_that_is_not_there_is_refused_with_the_built_in_ones() -> None:
    with pytest.raises(RefusedError, match="qwen3-reranker, bge-gemma, mxbai-v2"):
        read_template("qwen4")
    assert len(TEMPLATES) == 3


def test_an_answer_that_is_no_token_is_refused(
    tiny_llm: Callable[[str], Path], tmp_path: Path
) -> None:
    file, folder = tmp_path / "own.yaml", tiny_llm("qwen3")
    file.write_text(OWN.replace('"yes"', '"yes indeed"'))
    with pytest.raises(ModelError, match=r"'yes indeed' of the template is .* tokens"):
        check_model(folder, spec(folder, str(file)))
