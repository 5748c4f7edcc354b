"""Models of a named shape with random weights: as fast as the real ones, without a download."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from jobs.models import embedded_model

# layers, width, heads, feed-forward width, vocabulary
SHAPES: Final = {"minilm-l6": (6, 384, 12, 1536, 30_522)}
_POSITIONS: Final = 512


def random_model(shape: str, folder: Path) -> Path:
    """Write a BERT cross-encoder of that shape, with the embedded model's tokenizer.

    Its scores mean nothing; they are the same every time.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    layers, width, heads, feed_forward, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = BertConfig(  # type: ignore[call-arg]
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        max_position_embeddings=_POSITIONS,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    for file in embedded_model().glob("*token*.json"):
        shutil.copy2(file, folder)
    return folder
