from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from udfs.checkpoint import CheckpointError, digest_of, inspect_checkpoint, scoring_files


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_reranker_passes_and_its_limits_are_read(tiny_bert: Path, tiny_xlmr: Path) -> None:
    bert, xlmr = inspect_checkpoint(tiny_bert), inspect_checkpoint(tiny_xlmr)
    assert (bert.architecture, bert.positions) == ("BertForSequenceClassification", 128)
    # RoBERTa counts positions from pad_token_id + 1 = 2 on.
    assert (xlmr.architecture, xlmr.positions) == ("XLMRobertaForSequenceClassification", 126)
    assert bert.parameters > 10_000


def test_the_digest_follows_what_takes_part_in_a_score(copy: Path) -> None:
    before = inspect_checkpoint(copy).digest
    (copy / "README.md").write_text("about this model")
    assert inspect_checkpoint(copy).digest == before
    weights = copy / "model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    assert inspect_checkpoint(copy).digest != before


def test_an_encoder_without_a_head_is_refused(copy: Path) -> None:
    """FlagEmbedding#798: transformers fills a missing head at random and scores with it."""
    weights = load_file(copy / "model.safetensors")
    encoder = {name: value for name, value in weights.items() if "classifier" not in name}
    save_file(encoder, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="no classification head"):
        inspect_checkpoint(copy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["BertModel"]}, "architecture BertModel"),
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "auto_map"),
        ({"_attn_implementation_internal": "x/y"}, "_attn_implementation_internal"),
        ({"text_config": {"layers": [{"auto_map": {}}]}}, "auto_map"),
        ({"attn_implementation": "kernels-community/flash-attn2"}, "attn_implementation"),
        ({"architectures": ["XLNetForSequenceClassification"]}, "by the last position"),
    ],
)
def test_a_config_that_is_no_plain_cross_encoder_is_refused(
    copy: Path, changes: dict[str, object], said: str
) -> None:
    edit_config(copy, **changes)
    with pytest.raises(CheckpointError, match=said):
        inspect_checkpoint(copy)


def test_code_of_the_models_own_is_let_through_when_asked_for(copy: Path) -> None:
    edit_config(copy, auto_map={"AutoModel": "modeling.Model"})
    assert inspect_checkpoint(copy, trust_remote_code=True).positions == 128
    edit_config(copy, auto_map={"AutoModel": "somebody/code--modeling.Model"})
    with pytest.raises(CheckpointError, match=r"code of another repository \(auto_map\)"):
        inspect_checkpoint(copy, trust_remote_code=True)


def test_pickles_are_refused_and_the_remedy_named(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*convert them to safetensors"):
        inspect_checkpoint(copy)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_weight_file_is_found_without_loading_it(copy: Path, keep: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="copy it anew"):
        inspect_checkpoint(copy)


def test_all_errors_come_at_once(copy: Path) -> None:
    edit_config(copy, architectures=["BertModel"], auto_map={})
    (copy / "model.safetensors").unlink()
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(copy)
    assert len(caught.value.messages) >= 3


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect_checkpoint(tmp_path / "nope")


def test_a_tokenizer_with_code_of_its_own_is_refused(copy: Path) -> None:
    file = copy / "tokenizer_config.json"
    asking = {**json.loads(file.read_text()), "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    file.write_text(json.dumps(asking))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json asks for code"):
        inspect_checkpoint(copy)
    assert inspect_checkpoint(copy, trust_remote_code=True).positions == 128


def test_an_adapter_that_would_load_another_model_is_refused(copy: Path) -> None:
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(CheckpointError, match="another place"):
        inspect_checkpoint(copy)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("../outside/model-00001-of-00001.safetensors", "none of this folder's weight files"),
        ("pytorch_model.bin", "none of this folder's weight files"),
        (None, "is no index"),
    ],
)
def test_an_index_may_only_name_weights_that_were_checked(
    copy: Path, names: str | None, said: str
) -> None:
    """transformers opens whatever files it lists: outside of the folder, or pickles."""
    shard = "model-00001-of-00001.safetensors"
    (copy / "model.safetensors").rename(copy / shard)
    tensors = load_file(copy / shard)
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, shard)}))
    assert inspect_checkpoint(copy).parameters > 10_000
    wrong = {"weight_map": dict.fromkeys(tensors, names)} if names else {"weights": []}
    index.write_text(json.dumps(wrong))
    with pytest.raises(CheckpointError, match=said):
        inspect_checkpoint(copy)


def reasons(folder: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(folder)
    return caught.value.messages


def test_a_model_with_three_labels_is_refused_for_that_reason_alone(copy: Path) -> None:
    """Its head has three rows, so that one with a single row is missing, too."""
    weights = load_file(copy / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"].repeat(3, axis=0)
    weights["classifier.bias"] = weights["classifier.bias"].repeat(3)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    edit_config(copy, id2label={"0": "no", "1": "maybe", "2": "yes"})
    assert reasons(copy) == [
        "the model has 3 labels, and a score is the logit of one; set model.label: 0 (no), "
        "1 (maybe), 2 (yes)"
    ]
    assert inspect_checkpoint(copy, label="maybe").label == 1


@pytest.mark.parametrize("model_type", ["CrossEncoder", None])
def test_modules_that_are_not_supported_are_named(copy: Path, model_type: str | None) -> None:
    """A modular cross-encoder computes the logit behind the transformer, in a Dense module."""
    weights = load_file(copy / "model.safetensors")
    encoder = {name: value for name, value in weights.items() if "classifier" not in name}
    save_file(encoder, copy / "model.safetensors", metadata={"format": "pt"})
    edit_config(copy, architectures=["BertModel"])
    root = "sentence_transformers.base.modules"
    types = [f"{root}.Transformer", "sentence_transformers.models.WordWeights", f"{root}.cnn.CNN"]
    (copy / "modules.json").write_text(json.dumps([{"path": "", "type": each} for each in types]))
    if model_type:
        settings = copy / "config_sentence_transformers.json"
        settings.write_text(json.dumps({"model_type": model_type}))
    (reason,) = reasons(copy)
    assert "adds WordWeights and CNN to the transformer, which is not supported" in reason


def test_positions_are_found_under_their_other_names(copy: Path) -> None:
    edit_config(copy, model_type="gpt2", max_position_embeddings=None, n_positions=64)
    assert inspect_checkpoint(copy).positions == 64
    edit_config(copy, model_type="t5")  # its n_positions is a left-over: positions are relative
    assert inspect_checkpoint(copy).positions is None


def test_a_roberta_needs_the_padding_token_that_positions_are_counted_from(copy: Path) -> None:
    edit_config(copy, model_type="roberta", pad_token_id=None)
    (reason,) = reasons(copy)
    assert "pad_token_id=null, from which roberta counts positions; set it" in reason


@pytest.mark.parametrize(
    ("settings", "prompt"),
    [
        ({"default_prompt_name": "q", "prompts": {"q": "query: "}}, "query: "),
        ({"default_prompt_name": None, "prompts": {"q": "query: "}}, ""),
        (
            {
                "model_type": "SentenceTransformer",
                "default_prompt_name": "q",
                "prompts": {"q": "query: "},
            },
            "",
        ),
    ],
)
def test_the_prompt_that_applies_by_default_is_read(
    copy: Path, settings: dict[str, object], prompt: str
) -> None:
    (copy / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert inspect_checkpoint(copy).prompt == prompt


@pytest.mark.parametrize(
    "name", ["spm.model", "sentencepiece.model", "odd.model", "qwen.tiktoken", "tekken.json"]
)
def test_every_vocabulary_file_is_hashed_and_shipped(copy: Path, name: str) -> None:
    before = digest_of(copy)
    (copy / name).write_bytes(b"a vocabulary")
    assert digest_of(copy) != before
    assert copy / name in scoring_files(copy)


def test_the_names_of_vocabularies_are_those_of_transformers(tmp_path: Path) -> None:
    """A file that a tokenizer class names and no digest covers changes scores unseen."""
    from transformers import TokenizersBackend
    from transformers.models.auto.tokenization_auto import (
        TOKENIZER_MAPPING_NAMES,
        tokenizer_class_from_name,
    )

    classes = {tokenizer_class_from_name(name) for name in TOKENIZER_MAPPING_NAMES.values() if name}
    fast = [each for each in classes if each and issubclass(each, TokenizersBackend)]
    assert len(fast) > 40
    names = {name for each in fast for name in each.vocab_files_names.values()}
    for name in names:
        (tmp_path / name).touch()
    assert {file.name for file in scoring_files(tmp_path)} == names


def test_files_beside_code_of_the_models_own_are_hashed(copy: Path) -> None:
    before = digest_of(copy)
    (copy / "words.txt").write_text("read by nothing")
    (copy / "chat_template.jinja").write_text("")
    assert digest_of(copy) == before
    (copy / "modeling.py").write_text("")
    names = {file.name for file in scoring_files(copy)}
    assert {"words.txt", "modeling.py"} < names
    assert "chat_template.jinja" not in names
