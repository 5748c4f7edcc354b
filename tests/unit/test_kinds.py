"""Every kind of checkpoint, as the libraries that save it score with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from jobs.config import BatchingConfig, ModelConfig
from jobs.runtime.errors import RefusedError
from jobs.scoring.models import rendering, resolve_model
from jobs.scoring.stage import make_spec, refuse_unscorable
from tests.conftest import SENTENCES
from udfs.checkpoint import digest_of, inspect_checkpoint, scoring_files
from udfs.devices import TaskSlot
from udfs.scorers.cross_encoder import Scorer

peers = pytest.importorskip("sentence_transformers")

QUERIES = [SENTENCES[i % 7][: 9 + 7 * (i % 5)] for i in range(24)]
DOCS = [SENTENCES[(3 * i) % 8] * (1 + i % 5) for i in range(24)]
PAIRS = list(zip(QUERIES, DOCS, strict=True))
RAW = torch.nn.Identity()


def never(uri: str, folder: Path) -> Path:
    raise AssertionError("no registry was asked for")


def config(folder: Path, **keys: object) -> ModelConfig:
    return ModelConfig.model_validate({"name": str(folder), "max_length": 64, **keys})


def score(folder: Path, queries: list[str] = QUERIES, **keys: object) -> Any:
    """Score as jobs.rerank does, in float32 on the CPU."""
    model, batching = config(folder, device="cpu", **keys), BatchingConfig(max_tokens=1024)
    checkpoint = resolve_model(model, never)
    refuse_unscorable(model, batching, checkpoint)
    spec = make_spec(model, batching, checkpoint, "fp32")
    asked = [rendering(model, checkpoint).query_instruction + query for query in queries]
    return Scorer.load(checkpoint.path, spec, TaskSlot(cpus=2)).score(asked, DOCS)


def refused(folder: Path, **keys: object) -> str:
    with pytest.raises(RefusedError) as caught:
        score(folder, **keys)
    return "\n".join(caught.value.messages)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(params=["tiny_bert", "modernbert"])
def labelled(request: pytest.FixtureRequest, tiny_bert: Path, tmp_path: Path) -> Path:
    """Three labels, unpadded and padded: what NLI models have."""
    from transformers import BertConfig

    from tests.unit.test_scorer import MODERNBERT

    shutil.copytree(tiny_bert, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    given: Any = MODERNBERT
    if request.param == "tiny_bert":
        given = BertConfig.from_pretrained(tiny_bert)
    names = {0: "contradiction", 1: "entailment", 2: "neutral"}
    given = type(given)(**{**given.to_dict(), "id2label": names, "architectures": None})
    torch.manual_seed(4)
    AutoModelForSequenceClassification.from_config(given).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("label", ["entailment", "1"])
def test_one_of_several_labels_scores(labelled: Path, label: str) -> None:
    """txtai#1189: ranked by its own top label, a model with 3 labels inverts the order."""
    peer = peers.CrossEncoder(str(labelled), max_length=64, device="cpu")
    expected = peer.predict(PAIRS, activation_fn=RAW)
    assert expected.shape == (len(DOCS), 3)
    scores = score(labelled, label=label)
    np.testing.assert_allclose(scores.logit, expected[:, 1], atol=1e-4)
    assert np.abs(expected[:, 1] - expected[:, 0]).max() > 0.01


def test_a_label_has_to_be_named_and_to_be_there(labelled: Path, tiny_bert: Path) -> None:
    named = "set model.label: 0 (contradiction), 1 (entailment), 2 (neutral)"
    assert named in refused(labelled)
    assert f"model.label=relevant is none of them; {named}" in refused(labelled, label="relevant")
    assert "model.label=3 is none of them" in refused(labelled, label="3")
    assert "the model has 1 labels, and model.label=7" in refused(tiny_bert, label="7")


def test_labels_have_fingerprints_of_their_own(labelled: Path) -> None:
    prints = {
        make_spec(
            config(labelled), BatchingConfig(), inspect_checkpoint(labelled, label=name), "fp32"
        ).fingerprint()
        for name in ("entailment", "1", "0", "neutral")
    }
    assert len(prints) == 3


@pytest.fixture(scope="module")
def backbone(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ModernBERT without a head, as Ettin's."""
    from tests.unit.test_scorer import MODERNBERT

    folder = tmp_path_factory.mktemp("modular") / "backbone"
    shutil.copytree(tiny_bert, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(8)
    given = type(MODERNBERT)(**{**MODERNBERT.to_dict(), "initializer_range": 0.3})
    AutoModel.from_config(given).save_pretrained(folder)
    return folder


def modular(backbone: Path, folder: Path, pooling: str, scores: int = 1, **keys: Any) -> Any:
    """Save an Ettin-like cross-encoder, and return it."""
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    torch.manual_seed(9)
    modules = [
        Transformer(str(backbone), max_seq_length=64),
        Pooling(32, pooling),
        Dense(32, 24, activation_function=torch.nn.GELU()),
        LayerNorm(24),
        Dense(24, scores, activation_function=RAW, module_output_name="scores"),
    ]
    peer = peers.CrossEncoder(modules=modules, device="cpu", **keys)
    with torch.no_grad():
        for weight in modules[-1].parameters():
            weight.mul_(20)
    peer.save_pretrained(str(folder))
    return peer


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
def test_modules_score_as_sentence_transformers(
    backbone: Path, tmp_path: Path, pooling: str
) -> None:
    peer = modular(backbone, tmp_path / "m", pooling)
    expected = peer.predict(PAIRS, activation_fn=RAW)
    assert expected.std() > 0.1
    scores = score(tmp_path / "m")
    assert 0 < scores.truncated.sum() < len(DOCS)
    np.testing.assert_allclose(scores.logit, expected, atol=1e-4)


def test_modules_with_a_prompt_labels_and_an_activation(backbone: Path, tmp_path: Path) -> None:
    """The activation is for probabilities: scores are raw."""
    keys = {"prompts": {"q": "query: "}, "default_prompt_name": "q"}
    peer = modular(backbone, tmp_path / "m", "cls", 2, activation_fn=torch.nn.Softmax(1), **keys)
    assert "set model.label: 0, 1" in refused(tmp_path / "m")
    assert 'set model.query_instruction="query: "' in refused(tmp_path / "m", label="1")
    expected = peer.predict(PAIRS, activation_fn=RAW)[:, 1]
    scores = score(tmp_path / "m", label="1", query_instruction="query: ")
    np.testing.assert_allclose(scores.logit, expected, atol=1e-4)
    # Where rows have instructions of their own, the prompt is for those that have none.
    asked = config(tmp_path / "m", label="1")
    by_row = resolve_model(asked.model_copy(update={"query_instruction": "{instruction}"}), never)
    assert rendering(asked, by_row).query_instruction == "query: "
    without = config(tmp_path / "m", label="1", query_instruction="")
    assert rendering(without, by_row).query_instruction == ""


def test_files_of_modules_are_hashed_and_shipped(backbone: Path, tmp_path: Path) -> None:
    modular(backbone, tmp_path / "m", "cls")
    before = digest_of(tmp_path / "m")
    names = [file.relative_to(tmp_path / "m").as_posix() for file in scoring_files(tmp_path / "m")]
    assert {"modules.json", "1_Pooling/config.json", "4_Dense/model.safetensors"} <= {*names}
    weights = tmp_path / "m" / "4_Dense" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    assert digest_of(tmp_path / "m") != before
    with pytest.raises(RuntimeError, match="has the digest"):
        spec = make_spec(
            config(tmp_path / "m"), BatchingConfig(), inspect_checkpoint(tmp_path / "m"), "fp32"
        )
        save_file({name: value - 1 for name, value in load_file(weights).items()}, weights)
        Scorer.load(tmp_path / "m", spec, TaskSlot(1))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("1_Pooling", {"pooling_mode": "weightedmean"}, "weightedmean"),
        ("1_Pooling", {"include_prompt": False}, "Pooling of whole texts"),
        ("2_Dense", {"activation_function": "os.system"}, "with an activation of torch.nn"),
        ("2_Dense", {"use_residual": True}, "residual"),
        ("4_Dense", {"module_output_name": "sentence_embedding"}, "that give scores"),
    ],
)
def test_modules_set_to_what_is_not_supported_are_refused(
    backbone: Path, tmp_path: Path, file: str, changes: dict[str, object], said: str
) -> None:
    modular(backbone, tmp_path / "m", "cls")
    edit(tmp_path / "m" / file / "config.json", **changes)
    assert said in refused(tmp_path / "m")


def test_former_settings_of_pooling_are_read(backbone: Path, tmp_path: Path) -> None:
    modular(backbone, tmp_path / "m", "cls")
    before, file = score(tmp_path / "m").logit, tmp_path / "m" / "1_Pooling" / "config.json"
    for key in ("cls_token", "weightedmean_tokens"):
        old = {"word_embedding_dimension": 32, f"pooling_mode_{key}": True}
        file.write_text(json.dumps({**old, "pooling_mode_mean_tokens": False}))
        if key == "cls_token":
            np.testing.assert_array_equal(score(tmp_path / "m").logit, before)
    assert "weightedmean" in refused(tmp_path / "m")


def test_an_unknown_module_is_refused_by_its_name(backbone: Path, tmp_path: Path) -> None:
    modular(backbone, tmp_path / "m", "cls")
    file = tmp_path / "m" / "modules.json"
    file.write_text(file.read_text().replace("layer_norm.LayerNorm", "cnn.CNN"))
    assert "adds CNN to the transformer, which is not supported" in refused(tmp_path / "m")


CHAT = (
    "<|im_start|>system\n{{ messages[0].content if messages[0].role == 'system' else 'Judge.' }}"
    "<|im_end|>\n<|im_start|>user\n<Instruct>: find\n"
    "<Query>: {{ (messages | selectattr('role', 'eq', 'query') | first).content }}\n"
    "<Document>: {{ (messages | selectattr('role', 'eq', 'document') | first).content }}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


@pytest.mark.parametrize("prompt", ["", "Find the manual of the device."])
def test_logit_score_is_asked_by_the_chat_template(
    tiny_llm: Callable[[str], Path], tmp_path: Path, prompt: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_llm("qwen3"), folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    keys: Any = {"prompts": {"q": prompt}, "default_prompt_name": "q"} if prompt else {}
    peer = peers.CrossEncoder(str(folder), device="cpu", max_length=150, **keys)
    peer.save_pretrained(str(tmp_path / "saved"))
    expected = peer.predict(PAIRS, activation_fn=RAW)
    assert expected.std() > 0.1
    scores = score(tmp_path / "saved", max_length=150)
    assert 0 < scores.truncated.sum() < len(DOCS)
    np.testing.assert_allclose(scores.logit, expected, atol=1e-4)
    other = score(tmp_path / "saved", max_length=150, query_instruction="Another task.")
    assert np.abs(other.logit - scores.logit).max() > 1e-3
    said = refused(tmp_path / "saved", max_length=150, query_instruction="Find {query}.")
    assert "model.query_instruction has {query}" in said
    # What the folder says of the template's settings holds, as in sentence-transformers.
    start = CHAT.index("<|im_start|>assistant")
    asked = f"{CHAT[:start]}{{% if add_generation_prompt %}}{CHAT[start:]}{{% endif %}}"
    (tmp_path / "saved" / "chat_template.jinja").write_text(asked)
    assert np.abs(score(tmp_path / "saved", max_length=150).logit - scores.logit).max() > 1e-3
    settings = {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}}
    edit(tmp_path / "saved" / "sentence_bert_config.json", **settings)
    peer = peers.CrossEncoder(str(tmp_path / "saved"), device="cpu", max_length=150)
    again = score(tmp_path / "saved", max_length=150)
    np.testing.assert_allclose(again.logit, peer.predict(PAIRS, activation_fn=RAW), atol=1e-4)
    turned = asked.replace("'query'", "'?'").replace("'document'", "'query'")
    (tmp_path / "saved" / "chat_template.jinja").write_text(turned.replace("'?'", "'document'"))
    said = refused(tmp_path / "saved", max_length=150)
    assert "no chat template for a query and then a document" in said


def test_a_language_model_without_a_template_is_refused(
    tiny_llm: Callable[[str], Path], tiny_bert: Path
) -> None:
    said = refused(tiny_llm("qwen3"), max_length=400)
    assert "set model.template to qwen3-reranker, bge-gemma, mxbai-v2, or to a YAML file" in said
    assert "model.label=1 is for classifiers" in refused(tiny_llm("qwen3"), label="1")
    assert "is for causal language models" in refused(tiny_bert, template="bge-gemma")
    assert "architecture Qwen3ForCausalLM" in refused(tiny_llm("qwen3"), kind="classifier")
    asked = {"query_instruction": "{instruction}", "max_length": 250}
    said = refused(tiny_llm("gemma"), template="bge-gemma", **asked)
    assert "input.instruction needs a prompt with {instruction} in its text `query`" in said


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid()])
def test_the_activation_of_a_folder_is_known(
    activation: torch.nn.Module, tiny_bert: Path, tmp_path: Path
) -> None:
    peer = peers.CrossEncoder(str(tiny_bert), activation_fn=activation, device="cpu")
    peer.save_pretrained(str(tmp_path / "saved"))
    found = resolve_model(config(tmp_path / "saved"), never)
    assert found.activation == type(activation).__name__
    assert resolve_model(config(tiny_bert), never).activation == ""


def test_an_instruction_of_a_prompt_is_not_put_before_the_query(
    tiny_llm: Callable[[str], Path],
) -> None:
    keys = {"max_length": 400, "template": "qwen3-reranker", "query_instruction": "Find manuals."}
    model = config(tiny_llm("qwen3"), **keys)
    checkpoint = resolve_model(model, never)
    assert rendering(model, checkpoint).query_instruction == ""
    assert checkpoint.template is not None
    assert "<Instruct>: Find manuals.\n<Query>: {query}" in checkpoint.template.query


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["JinaForRanking"]},
        {"_name_or_path": "castorini/rank_zephyr_7b_v1_full"},
    ],
)
def test_listwise_rerankers_are_refused_with_the_reason(
    tiny_llm: Callable[[str], Path], tmp_path: Path, changes: dict[str, object]
) -> None:
    shutil.copytree(tiny_llm("qwen3"), tmp_path / "m")
    edit(tmp_path / "m" / "config.json", **changes)
    assert "ranks a list as a whole" in refused(tmp_path / "m", template="qwen3-reranker")
