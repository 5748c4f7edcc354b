"""Weight files of a model folder: which are loaded, and whether they are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

# Readers of these formats unpickle, and unpickling can run code (CVE-2025-32434).
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def weight_files(path: Path) -> list[Path]:
    """List the weight files that are loaded: the whole model, or else its shards."""
    whole = path / "model.safetensors"
    return [whole] if whole.is_file() else sorted(path.glob("model-*-of-*.safetensors"))


def read_shapes(path: Path) -> tuple[dict[str, list[int]], list[str]]:
    """Return the shape of each tensor, from the files' headers, and the errors of the files."""
    if (path / "adapter_config.json").exists():
        return {}, [
            f"{path} holds adapter_config.json, which has weights loaded from another place; merge "
            "the adapter into its model and save that"
        ]
    files = weight_files(path)
    if not files:
        if pickles := ", ".join(sorted(f.name for f in path.iterdir() if f.suffix in _PICKLES)):
            remedy = f"only {pickles}, which can run code; convert them to safetensors"
            return {}, [f"{path} holds {remedy}"]
        return {}, [f"{path} has no *.safetensors weights; name the folder that has them"]
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                shapes |= {key: tensors.get_slice(key).get_shape() for key in tensors.offset_keys()}
        except (OSError, SafetensorError) as error:
            return {}, [f"{file} cannot be read as safetensors ({error}); copy it anew"]
    return shapes, _check_index(path, {file.name for file in files}, set(shapes))


def _check_index(path: Path, files: set[str], tensors: set[str]) -> list[str]:
    """Refuse an index of shards, which loading follows, that names files nobody has checked."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        wanted = {str(k): str(v) for k, v in json.loads(index.read_text())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{index} is no index of weights; copy the folder anew"]
    errors = []
    if outside := sorted(set(wanted.values()) - files):
        errors.append(
            f"{index} names {', '.join(outside[:3])}, which is none of this folder's weight files; "
            "copy the folder anew"
        )
    if missing := len(set(wanted) - tensors):
        errors.append(f"{missing} tensors of {index} are in no file; copy the folder anew")
    return errors
