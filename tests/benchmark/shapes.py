"""Models of a named shape with random weights: as fast as the real ones, without a download."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmark.texts import EMBEDDED


@dataclass(frozen=True)
class Shape:
    """What decides the time of a forward pass."""

    family: str
    layers: int
    width: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int


SHAPES: Final = {
    # For tests; the smallest vocabulary that holds every id of the embedded tokenizer.
    "tiny": Shape("xlm-roberta", 2, 64, 4, 256, 24_064, 514),
    "minilm-l6": Shape("bert", 6, 384, 12, 1536, 30_522, 512),
    "bge-reranker-base": Shape("xlm-roberta", 12, 768, 12, 3072, 250_002, 514),
    "bge-reranker-v2-m3": Shape("xlm-roberta", 24, 1024, 16, 4096, 250_002, 8194),
}


def random_model(name: str, folder: Path, device: str = "cpu", dtype: str = "float32") -> Path:
    """Write a cross-encoder of that shape, with the embedded model's tokenizer.

    Its scores mean nothing; they are the same every time. The tokenizer's ids reach the first
    rows of a larger vocabulary only; lengths are what matters for the time.

    Args:
        name: of `SHAPES`.
        folder: an empty one.
        device: what draws the weights; another device draws other ones.
        dtype: torch's name of their number type.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = SHAPES[name]
    for file in EMBEDDED.glob("*token*.json"):
        shutil.copy2(file, folder)
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    if shape.family != "bert":
        # The family has one token type, so its models must not be given two.
        settings["model_input_names"] = ["input_ids", "attention_mask"]
        settings_file.write_text(json.dumps(settings), encoding="utf-8")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.positions,
        type_vocab_size=2 if shape.family == "bert" else 1,
        pad_token_id=1,  # as in the embedded tokenizer
        num_labels=1,
        # Large enough to tell pairs apart: at BERT's 0.02, logits differ by less than fp16 rounds.
        initializer_range=shape.width**-0.5,
    )
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            config, dtype=getattr(torch, dtype)
        )
    model.save_pretrained(folder)
    return folder
