"""LoRA adapters: the merged model scores as peft does with the two apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from jobs.config import BatchingConfig, ModelConfig
from jobs.runtime.errors import RefusedError
from jobs.scoring import adapters
from jobs.scoring.models import resolve_model
from jobs.scoring.stage import make_spec
from tests.conftest import SENTENCES
from udfs.devices import TaskSlot
from udfs.scorers.cross_encoder import Scorer

peft: Any = pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def never(uri: str, folder: Path) -> Path:
    raise AssertionError("no registry was asked for")


def scores(folder: Path, **keys: object) -> list[float]:
    model = ModelConfig.model_validate({"name": str(folder), "device": "cpu", **keys})
    checkpoint = resolve_model(model, never)
    spec = make_spec(model, BatchingConfig(), checkpoint, "fp32")
    scorer = Scorer.load(checkpoint.path, spec, TaskSlot(cpus=1))
    found: list[float] = scorer.score(SENTENCES[:6], SENTENCES[1:7]).logit.tolist()
    return found


def adapted(base: Path, folder: Path, task: str, **keys: Any) -> Any:
    """Save a random adapter, with the head where it is a classifier's; return the model."""
    auto: Any = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    torch.manual_seed(5)
    model = auto.from_pretrained(base, **keys)
    given = peft.LoraConfig(task_type=task, r=4, init_lora_weights=False)
    model = peft.get_peft_model(model, given).eval()
    model.save_pretrained(folder)
    return model


def test_an_adapter_of_an_encoder_brings_its_head(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_bert)
    BertModel.from_pretrained(tiny_bert).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    model = adapted(tmp_path / "encoder", tmp_path / "lora", "SEQ_CLS", num_labels=1)
    inputs = tokenizer(
        SENTENCES[:6], SENTENCES[1:7], truncation=True, max_length=64, padding=True,
        return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        expected = model(**inputs).logits[:, 0]
    found = scores(tmp_path / "lora", max_length=64)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert scores(tmp_path / "lora", max_length=64) == found  # from the cache
    # What goes along with the adapter counts: its tokenizer, and prompts.
    given = ModelConfig.model_validate({"name": str(tmp_path / "lora"), "max_length": 64})
    merged = {resolve_model(given, never).path}
    tokenizer.save_pretrained(tmp_path / "lora")
    merged.add(resolve_model(given, never).path)
    file = tmp_path / "lora" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    merged.add(resolve_model(given, never).path)
    assert len(merged) == 3
    saved = {"model_type": "CrossEncoder", "prompts": {"q": "Q: "}, "default_prompt_name": "q"}
    (tmp_path / "lora" / "config_sentence_transformers.json").write_text(json.dumps(saved))
    with pytest.raises(RefusedError, match=r'set model\.query_instruction="Q: "'):
        resolve_model(given, never)


def test_an_adapter_of_a_language_model(tiny_llm: Callable[[str], Path], tmp_path: Path) -> None:
    from tests.unit.test_llm import qwen3

    base = tiny_llm("qwen3")
    model = adapted(base, tmp_path / "lora", "CAUSAL_LM")
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    expected = []
    for ids in qwen3(tokenizer, SENTENCES[:6], SENTENCES[1:7], 500, ""):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
        expected.append((logits[yes] - logits[no]).item())
    keys = {"max_length": 500, "template": "qwen3-reranker"}
    found = scores(tmp_path / "lora", **keys)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(np.array(found) - scores(base, **keys)).max() > 0.01


def test_an_adapter_that_cannot_be_merged_is_refused(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = tmp_path / "lora"
    adapted(tiny_bert, lora, "SEQ_CLS")
    file = lora / "adapter_config.json"
    given = json.loads(file.read_text())
    for changes, said in (
        ({"base_model_name_or_path": "org/base"}, "base model org/base of the adapter is no fold"),
        ({"base_model_name_or_path": str(lora)}, "has no config.json"),
        ({"peft_type": "IA3"}, "is not of a LoRA adapter"),
        ({"target_modules": ["elsewhere"]}, "cannot be merged into"),
    ):
        file.write_text(json.dumps({**given, **changes}))
        with pytest.raises(RefusedError, match=said):
            scores(lora, max_length=64)
    file.write_text(json.dumps(given))
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(RefusedError, match="pip install peft"):
        scores(lora, max_length=64)
