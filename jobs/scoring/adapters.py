"""LoRA adapters, merged into their base model on the driver, once, and kept in the user's cache."""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from jobs.runtime.cache import cache, cached_folder
from jobs.runtime.errors import RefusedError
from udfs.checkpoint import CheckpointError, inspect_checkpoint, scoring_files, weight_files

_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"
# Saved with the merged model; the base's would not fit it.
_SAVED: Final = ("config.json", "model.safetensors.index.json")


def merge_adapter(folder: Path, find_base: Callable[[str, str | None], Path]) -> Path:
    """Return a folder that has the adapter merged into its base; `folder` if it is no adapter.

    `find_base` takes the name and the revision of the base model. The merged model is in float32,
    as rounding it would lose most of what an adapter adds.

    Raises:
        RefusedError: naming what is missing.
    """
    if weight_files(folder) or not ((folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file()):
        return folder
    try:
        given = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        given = {}
    if given.get("peft_type") != "LORA" or not given.get("base_model_name_or_path"):
        raise RefusedError(f"{folder / _CONFIG} is not of a LoRA adapter with a base model")
    if find_spec("peft") is None:
        raise RefusedError(
            f"{folder} is a LoRA adapter, which peft merges into its model; pip install peft (on "
            "the driver)"
        )
    try:
        base = inspect_checkpoint(
            find_base(given["base_model_name_or_path"], given.get("revision")), kind="llm"
        )
    except CheckpointError as error:
        raise RefusedError([f"base model of {folder}: {said}" for said in error.messages]) from None
    digest = hashlib.sha256(f"2 {base.digest}".encode())  # 2: with the adapter's other files
    for file in (folder / _CONFIG, folder / _WEIGHTS, *_others(base.path), *_others(folder)):
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    causal = base.architecture.endswith("ForCausalLM") and given.get("task_type") != "SEQ_CLS"
    make = partial(_merge, folder, base.path, causal)
    try:
        return cached_folder(cache() / "merged" / digest.hexdigest(), make)
    except RefusedError:
        raise
    except Exception as error:  # peft and transformers raise of every kind
        reason = " ".join(str(error).split())
        raise RefusedError(
            f"the adapter {folder} cannot be merged into {base.path} ({type(error).__name__}: "
            f"{reason}); check base_model_name_or_path of its {_CONFIG}"
        ) from error


def _merge(adapter: Path, base: Path, causal: bool, target: Path) -> None:
    """Write the merged model, with the adapter's tokenizer if it has one."""
    import torch
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    with safe_open(adapter / _WEIGHTS, framework="pt") as tensors:
        shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.offset_keys()}
    heads = [s[0] for key, s in shapes.items() if len(s) == 2 and ".lora_" not in key]
    labels: dict[str, Any] = {} if causal or not heads else {"num_labels": min(heads)}
    auto: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model, info = auto.from_pretrained(
        str(base), dtype=torch.float32, local_files_only=True, use_safetensors=True,
        output_loading_info=True, ignore_mismatched_sizes=True, **labels,
    )  # fmt: skip
    random = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if lacking := [name for name in random if not any(key.endswith(name) for key in shapes)]:
        raise RefusedError(
            f"{len(lacking)} weights are neither in {base} nor in the adapter {adapter}, first "
            f"{lacking[0]}; they would be random. Name a complete reranker"
        )
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(str(target))
    for source in (base, adapter):  # the adapter's tokenizer wins
        for file in _others(source):
            shutil.copy2(file, target / file.name)


def _others(source: Path) -> list[Path]:
    """Return what goes along with weights: the tokenizer, and prompts of sentence-transformers."""
    prompts = source / "config_sentence_transformers.json"
    files = {*scoring_files(source), *([prompts] if prompts.is_file() else [])}
    kept = (f for f in files - set(weight_files(source)) if f.parent == source)
    return sorted(file for file in kept if file.name not in (*_SAVED, "modules.json"))
