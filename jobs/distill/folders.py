"""Model folders: what a training starts from, and what it ends with."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from sentence_transformers.cross_encoder import CrossEncoder
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from jobs.distill.vocabulary import prune
from jobs.runtime.errors import RefusedError


class Loaded(NamedTuple):
    """What `save` needs of a CrossEncoder."""

    model: Any
    tokenizer: Any


def count_layers(folder: Path) -> int:
    """Return how many layers a model has."""
    return int(AutoConfig.from_pretrained(folder).num_hidden_layers)


def make_start(
    folder: Path, layers: Sequence[int], seed: int, out: Path, texts: Iterable[str] | None = None
) -> Path:
    """Write OUT/start: a model with some of its layers (none named: all); return the folder.

    An encoder without a head gets one of random weights, the same for the same seed. `texts`: what
    the vocabulary is to be cut down to.

    Raises:
        ValueError, OSError, RuntimeError: for what transformers cannot load as a classifier.
        RefusedError: for layers or a vocabulary that cannot be left out.
    """
    torch.manual_seed(seed)
    model, _ = _load(folder)
    if layers:
        _keep_layers(model, layers)
    start, tokenizer = out / "start", AutoTokenizer.from_pretrained(folder)
    if texts is not None:
        start.mkdir(parents=True, exist_ok=True)
        tokenizer = prune(model, tokenizer, texts, start)
    save(Loaded(model, tokenizer), start, "fp32")
    if _load(start)[1]:
        raise RefusedError(
            f"distill.layers={layers}: the first layer of a {type(model).__name__} is not like the "
            "others; start with 0"
        )
    return start


def _load(folder: Path) -> tuple[Any, list[str]]:
    """Return a classifier with one label, and the weights that its folder lacks, or has in excess.

    Raises:
        ValueError: if weights of its body are among them.
    """
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    missing, body = sorted(info["missing_keys"]), f"{model.base_model_prefix}."
    if lacking := [name for name in missing if name.startswith(body) and "pooler" not in name]:
        raise ValueError(f"{len(lacking)} of its weights are missing, {lacking[0]} first")
    return model, [*missing, *info["unexpected_keys"]]


def _keep_layers(model: Any, layers: Sequence[int]) -> None:
    body, config = model.base_model, model.config
    found = [
        name for name, module in body.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == config.num_hidden_layers
    ]  # fmt: skip
    if len(found) != 1:
        raise RefusedError(
            f"distill.layers: a {type(model).__name__} has no list of {config.num_hidden_layers} "
            "layers to choose from; leave it out"
        )
    above, _, name = found[0].rpartition(".")
    every = body.get_submodule(found[0])
    setattr(body.get_submodule(above), name, torch.nn.ModuleList(every[at] for at in layers))
    config.num_hidden_layers = len(layers)
    if kinds := getattr(config, "layer_types", None):  # what a layer attends to
        config.layer_types = [kinds[at] for at in layers]


def save(encoder: CrossEncoder | Loaded, folder: Path, weights: str) -> None:
    """Write model and tokenizer; matrices of the layers and embeddings as `weights` says.

    transformers turns each into the precision that is asked for as it loads. Vectors, and for
    float8 the head, stay as they are.
    """
    model: Any = encoder.model
    folder.mkdir(parents=True, exist_ok=True)
    encoder.tokenizer.save_pretrained(folder)
    model.config.dtype = "float32"
    model.save_pretrained(folder)
    to = {"fp32": torch.float32, "fp16": torch.float16, "float8": torch.float8_e4m3fn}[weights]
    tensors = {}
    for name, value in model.state_dict().items():
        is_large = value.dim() == 2 and any(part in name for part in ("encoder.", "word_emb"))
        dtype = (
            to if is_large else torch.float16 if weights != "fp32" and value.dim() == 2 else None
        )
        tensors[name] = value.to("cpu", dtype).contiguous() if dtype else value.cpu().contiguous()
        if not torch.isfinite(tensors[name].float()).all():
            raise ValueError(f"{name} does not fit into {weights}; choose another")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
