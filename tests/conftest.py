"""Tiny real models, made once per test run: a BERT and an XLM-RoBERTa with tokenizers of our own.

Their weights are random, so their scores mean nothing; what is tested is that every way of
computing them agrees.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Small enough to score a pair in a millisecond, with weights large enough to tell pairs apart.
TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 128, "num_labels": 1, "initializer_range": 0.4,
}  # fmt: skip

Database = Callable[[Path], str]

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"

SENTENCES = [
    "How long does a flea live? A flea lives up to a year, though ninety days is usual.",
    "The tower in Pisa leans because the ground below one side of it is soft.",
    "Reset the earbuds by holding both buttons for ten seconds until the light blinks red.",
    "Bread rises because yeast turns sugar into gas; salt slows it down a little.",
    "跳蚤的寿命通常是九十天，最长可以活一年。",
    "把耳机放回充电盒，长按按钮十秒，指示灯闪烁后即恢复出厂设置。",
    "A contract may be ended by either side with a notice of thirty days in writing.",
    "unbelievable internationalisation, re-ranking, 3/4 of 512 tokens; naïve café Straße",
]


def pieces(normalizer: Any, pre_tokenizer: Any) -> tuple[list[str], list[str]]:
    """The words and the characters of `SENTENCES`, in order.

    A vocabulary is built of these, as tokenizers' trainers for WordPiece and Unigram give other
    pieces in each process, and so other models.
    """
    words = {
        word
        for sentence in SENTENCES
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(sentence))
    }
    return sorted(words), sorted(set("".join(words)))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT cross-encoder with 128 positions."""
    import torch
    from tokenizers import BertWordPieceTokenizer, normalizers, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    words, letters = pieces(normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer())
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    BertWordPieceTokenizer({piece: at for at, piece in enumerate(vocabulary)}).save(
        str(folder.parent / "bert-tokenizer.json")
    )
    tokenizer = BertTokenizerFast(
        tokenizer_file=str(folder.parent / "bert-tokenizer.json"), model_max_length=128
    )
    torch.manual_seed(7)
    config = BertConfig(
        **TINY,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_xlmr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer XLM-RoBERTa cross-encoder with 128 positions, as bge-reranker-v2-m3 is built."""
    import torch
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import (
        PreTrainedTokenizerFast,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
    )

    folder = tmp_path_factory.mktemp("models") / "tiny-xlmr"
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    normalizer, metaspace = normalizers.NFKC(), pre_tokenizers.Metaspace()
    words, letters = pieces(normalizer, metaspace)
    # A word is likelier than its letters.
    likely = dict.fromkeys(special, 0.0) | dict.fromkeys(letters, -9.0) | dict.fromkeys(words, -6.0)
    trained = Tokenizer(models.Unigram([*likely.items()], unk_id=3))
    trained.normalizer = normalizer
    trained.pre_tokenizer = metaspace
    trained.decoder = decoders.Metaspace()
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=126,
        model_input_names=["input_ids", "attention_mask"],
    )
    torch.manual_seed(11)
    config = XLMRobertaConfig(
        **TINY,
        vocab_size=len(tokenizer),
        type_vocab_size=1,
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


#: Tiny causal language models, and the template that each is asked with.
LLMS = {"qwen3": "qwen3-reranker", "gemma": "bge-gemma", "qwen2": "mxbai-v2"}


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make random causal language models of two layers, one of each name in `LLMS`."""
    root = tmp_path_factory.mktemp("llms")

    def make(name: str) -> Path:
        folder: Path = root / f"tiny-{name}"
        if not folder.exists():
            make_llm(folder, name)
        return folder

    return make


def make_llm(folder: Path, name: str) -> None:
    """Save a random causal language model with a tokenizer that cuts texts as Qwen's does."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        AutoModelForCausalLM,
        GemmaConfig,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen3Config,
    )

    special = ["<bos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    words = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    answers = [*["yes", "no", "Yes", "No", "0", "1"] * 30, *["?\n", ".\n", ">: The", "B: A"] * 20]
    trained.train_from_iterator([*SENTENCES * 4, *answers], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token="<bos>", eos_token="<|im_end|>",
        pad_token="<|endoftext|>", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(13)
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "head_dim": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 4096, "initializer_range": 0.3,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": name != "qwen2",
    }  # fmt: skip
    config = {"qwen3": Qwen3Config, "gemma": GemmaConfig, "qwen2": Qwen2Config}[name](**shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mlflow.tracking import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def database(_empty_database: Path) -> Database:
    """Make MLflow databases: the tables of the first take half a minute, the others are copies."""

    def make(file: Path) -> str:
        shutil.copy(_empty_database, file)
        return f"sqlite:///{file}"

    return make


@pytest.fixture(params=["tiny_bert", "tiny_xlmr"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """Each tiny model in turn."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def shared_data(name: str) -> Path:
    """A file of the shared measuring data; the test is skipped where it is not there."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the shared data set {name}, which is not part of the project")
    return path
