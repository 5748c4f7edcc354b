"""Models whose weights are random, on a GPU; everything here is skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from udfs.devices import TaskSlot, find_gpu, gpus
from udfs.encoding.pairs import EncodedPairs
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import ScorerSpec

POSITIONS = 8194
FIRST_ID = 5  # the ids below are special tokens


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    if mine and not gpus():
        for item in mine:
            item.add_marker(pytest.mark.skip(reason="this machine has no GPU"))


@dataclass(frozen=True)
class Model:
    """A folder with a cross-encoder of two layers, as wide as bge-reranker-v2-m3."""

    path: Path
    vocabulary: int

    def scorer(self, precision: str = "fp16", device: str = "cuda", **settings: Any) -> Scorer:
        """Load it as a task does; `settings` are of ScorerSpec."""
        given = {"max_length": POSITIONS - 2, "max_tokens": 16_384, **settings}
        spec = ScorerSpec(str(self.path), "", precision=precision, device=device, **given)  # type: ignore[arg-type]
        return Scorer.load(self.path, spec, TaskSlot(2, find_gpu("0")))

    def pairs(self, lengths: Sequence[int], seed: int = 3) -> EncodedPairs:
        """Return encoded pairs of these lengths [tokens] with random ids."""
        draw = np.random.default_rng(seed).integers
        ids = draw(FIRST_ID, self.vocabulary, sum(lengths), dtype=np.int32)
        sizes: NDArray[np.int64] = np.array(lengths, np.int64)
        return EncodedPairs(ids, None, sizes, np.zeros(len(sizes), np.bool_), pad_id=1)


def write_model(
    tiny: Path, folder: Path, change: Callable[[Any], None] = lambda _model: None
) -> Model:
    """Write a model of random weights, changed by `change`, with the tokenizer of `tiny`."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(tiny)
    config.update(
        {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096,
         "max_position_embeddings": POSITIONS, "initializer_range": 0.05}
    )  # fmt: skip
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_config(config)
    change(model)
    model.save_pretrained(folder)
    return Model(folder, config.vocab_size)


@pytest.fixture(scope="session")
def model(tiny_xlmr: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return write_model(tiny_xlmr, tmp_path_factory.mktemp("gpu") / "model")
