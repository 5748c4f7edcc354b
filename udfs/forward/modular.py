"""The modules that sentence-transformers runs behind a transformer, from the files it saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from udfs.encoding.pairs import EncodedPairs
from udfs.forward.base import BatchOutput, ModelError
from udfs.forward.transfer import now, read, send
from udfs.kinds import HEADS, Module, modules_behind

_KEY: Final = "sentence_embedding"
_Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _at(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return rows[torch.arange(len(rows), device=rows.device), places]


# Hidden states [B, L, H] and a mask of the tokens, int64[B, L], padded on the right -> [B, H].
_POOLS: Final[dict[str, _Pool]] = {
    "cls": lambda rows, _: rows[:, 0],
    "lasttoken": lambda rows, mask: _at(rows, mask.sum(1) - 1),
    "mean": lambda rows, mask: (rows * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
    "max": lambda rows, mask: rows.masked_fill(mask[..., None] == 0, -torch.inf).amax(1),
}


class Layers(NamedTuple):
    """What computes the scores from a transformer's hidden states, in float32."""

    pools: list[_Pool]  # whose results are laid side by side
    behind: torch.nn.Sequential  # [B, H] -> [B, labels]


def read_layers(path: Path) -> tuple[Layers, dict[Path, bytes]]:
    """Read the modules of a folder: the layers, and the SHA-256 of each weight file.

    Raises:
        ModelError: if a module is unknown, or set to what is not supported.
    """
    modules = modules_behind(path)
    unknown = [module.name for module in modules if module.name not in HEADS]
    if unknown or [m.name for m in modules if m.name == "Pooling"] != [modules[0].name]:
        raise ModelError(
            f"modules.json of {path} has {' and '.join(m.name for m in modules)}; one Pooling, "
            "then Dense and LayerNorm can be run"
        )
    settings = [_settings(path / module.path) for module in modules]
    hashes: dict[Path, bytes] = {}
    behind = [
        _layer(path, module, given, hashes)
        for module, given in zip(modules[1:], settings[1:], strict=True)
    ]
    return Layers(_pools(path, settings[0]), torch.nn.Sequential(*behind)), hashes


class ModularModel:
    """A transformer of transformers with the modules behind it, on one device."""

    def __init__(self, model: Any, layers: Layers, device: torch.device, label: int) -> None:
        """Take a model that is on the device; `label`: whose score it is."""
        self._model, self._device, self._label = model, device, label
        self._pools, self._behind = layers.pools, layers.behind.to(device).eval()

    @torch.inference_mode()
    def forward(self, batch: EncodedPairs) -> BatchOutput:
        """Compute one raw logit per pair."""
        start = now(self._device)
        inputs = {name: send(array, self._device) for name, array in batch.padded().items()}
        rows = self._model(**inputs).last_hidden_state.float()
        pooled = [pool(rows, inputs["attention_mask"]) for pool in self._pools]
        logits = self._behind(torch.cat(pooled, dim=1))[:, self._label]
        return read(logits, batch.lengths.max() - batch.lengths, start)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no config.json to read; copy the folder anew") from error
    return dict(content)


def _pools(path: Path, given: dict[str, Any]) -> list[_Pool]:
    # Before 5.4: a key for each mode, such as pooling_mode_cls_token.
    older = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max",
             "lasttoken": "lasttoken", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
             "weightedmean_tokens": "weightedmean"}  # fmt: skip
    chosen = [mode for key, mode in older.items() if given.get(f"pooling_mode_{key}")]
    modes = given.get("pooling_mode", chosen or "mean")
    modes = [modes] if isinstance(modes, str) else list(modes)
    if unknown := [mode for mode in modes if mode not in _POOLS]:
        raise ModelError(
            f"Pooling of {path} pools by {', '.join(unknown)}; {', '.join(_POOLS)} are supported"
        )
    if not given.get("include_prompt", True):
        raise ModelError(f"Pooling of {path} leaves prompts out, which is not supported")
    return [_POOLS[mode] for mode in modes]


def _layer(
    path: Path, module: Module, given: dict[str, Any], hashes: dict[Path, bytes]
) -> torch.nn.Module:
    """Make a layer, with its weights."""
    from safetensors.torch import load

    names = {given.get("module_input_name", _KEY), given.get("module_output_name", _KEY)}
    if names - {_KEY, "scores", None} or given.get("use_residual"):
        raise ModelError(f"{module.path} of {path} has a residual or inputs that are not supported")
    if module.name == "Dense":
        sizes = int(given["in_features"]), int(given["out_features"])
        layer: torch.nn.Module = torch.nn.Linear(*sizes, bias=given.get("bias", True))
    else:
        layer = torch.nn.LayerNorm(int(given["dimension"]))
    file = path / module.path / "model.safetensors"
    try:
        content = file.read_bytes()
        weights = {name.partition(".")[2]: value for name, value in load(content).items()}
        layer.load_state_dict({name: value.float() for name, value in weights.items()})
    except Exception as error:  # safetensors' own class is not public
        raise ModelError(f"{file} cannot be read ({error}); copy the folder anew") from error
    hashes[file] = hashlib.sha256(content).digest()
    return torch.nn.Sequential(layer, _activation(path, given)) if module.name == "Dense" else layer


def _activation(path: Path, given: dict[str, Any]) -> torch.nn.Module:
    # Those of torch only, made without arguments: a name from a file must not run other code.
    name = str(given.get("activation_function", "torch.nn.modules.activation.Tanh"))
    known = getattr(torch.nn, name.rpartition(".")[2], None)
    if not (name.startswith("torch.nn.") and isinstance(known, type)):
        raise ModelError(f"Dense of {path} has the activation {name}, which is none of torch.nn")
    if not issubclass(known, torch.nn.Module):
        raise ModelError(f"Dense of {path} has the activation {name}, which is no module")
    return known()
