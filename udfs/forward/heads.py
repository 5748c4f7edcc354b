"""What computes a score where a model of transformers has no classification head, in float32."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch

from udfs.forward.base import ModelError
from udfs.kinds import Module, modules_behind

_Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Hidden states [B, L, H] and a mask of the tokens, int64[B, L], padded on the right -> [B, H].
_POOLS: Final[dict[str, _Pool]] = {
    "cls": lambda rows, _: rows[:, 0],
    "lasttoken": lambda rows, mask: _last(rows, mask),
    "mean": lambda rows, mask: (rows * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
    "max": lambda rows, mask: rows.masked_fill(mask[..., None] == 0, -torch.inf).amax(1),
}


# Former keys of sentence-transformers, in its order.
_OLD_POOLS: Final = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip


def _last(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return rows[torch.arange(len(rows), device=rows.device), mask.sum(1) - 1]


class AnsweringModel(torch.nn.Module):
    """A causal language model that scores by the logits of one answer, or of one minus another.

    Rows are padded on the right: no token of a prompt sees what comes after it, and positions count
    from its first token. The head gets the last position alone, and keeps the answers' rows of its
    weights. What the model does to its logits (scales, caps) it does to these.
    """

    def __init__(
        self, model: Any, answers: Sequence[int], tensors: Mapping[str, torch.Tensor]
    ) -> None:
        """Exchange the head; weights are those of the checkpoint's `tensors`, if it has them."""
        super().__init__()
        whole, self._model, self._mask = model.get_output_embeddings(), model, torch.ones(0)
        if type(whole) is not torch.nn.Linear or max(answers) >= len(whole.weight):
            raise ModelError(f"{type(model).__name__} has no head with logits of the answers")
        # A head that is tied to the embeddings has their name.
        names = {id(value): name for name, value in model.named_parameters()}
        head = torch.nn.Linear(whole.in_features, len(answers), whole.bias is not None)
        for part, value in whole.named_parameters():
            rows = tensors.get(names[id(value)], value.detach())[list(answers)].float()
            setattr(head, part, torch.nn.Parameter(rows, requires_grad=False))
        head.register_forward_pre_hook(
            lambda _, inputs: (_last(inputs[0], self._mask).float()[:, None],)
        )
        model.set_output_embeddings(head)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """int64[B, L] each -> an object with `logits`, float32[B, 1]."""
        self._mask = attention_mask
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        logits = self._model(**given).logits[:, 0].float()
        return SimpleNamespace(logits=logits[:, :1] - logits[:, 1:].sum(1, keepdim=True))


class ModularModel(torch.nn.Module):
    """A transformer with the Pooling, Dense and LayerNorm that sentence-transformers saved."""

    def __init__(self, model: Any, path: Path, hashes: dict[Path, bytes]) -> None:
        """Read the modules of a folder, and add the SHA-256 of their weight files to `hashes`.

        Raises:
            ModelError: if a module is set to what is not supported.
        """
        super().__init__()
        first, *others = modules_behind(path)
        self._model, given = model, _settings(path, first)
        old = [mode for key, mode in _OLD_POOLS.items() if given.get(key)]
        modes = given.get("pooling_mode", old or "mean")
        modes = [modes] if isinstance(modes, str) else modes
        if first.name != "Pooling" or not {*modes} <= {*_POOLS} or not given.get(
            "include_prompt", True
        ):  # fmt: skip
            raise ModelError(
                f"{path / first.path} has the settings {json.dumps(given)}; Pooling of whole texts "
                f"by {', '.join(_POOLS)} is supported"
            )
        self._pools = [_POOLS[mode] for mode in modes]
        self._layers = torch.nn.Sequential(*(_layer(path, module, hashes) for module in others))

    def forward(self, **inputs: torch.Tensor) -> Any:
        """int64[B, L] each -> an object with `logits`, float32[B, labels]."""
        rows = self._model(**inputs).last_hidden_state.float()
        pooled = [pool(rows, inputs["attention_mask"]) for pool in self._pools]
        return SimpleNamespace(logits=self._layers(torch.cat(pooled, dim=1)))


def _layer(path: Path, module: Module, hashes: dict[Path, bytes]) -> torch.nn.Module:
    """Make a layer of a module and its weights."""
    from safetensors.torch import load

    given, file = _settings(path, module), path / module.path / "model.safetensors"
    name = str(given.get("activation_function", "torch.nn.Identity"))
    # Those of torch, made without arguments: a name from a file must not run other code.
    activation: Any = getattr(torch.nn, name.rpartition(".")[2], None)
    known = name.startswith("torch.nn.") and isinstance(activation, type)
    if given.get("use_residual") or not known or not issubclass(activation, torch.nn.Module):
        raise ModelError(
            f"{path / module.path} has the settings {json.dumps(given)}; layers without a residual "
            "and with an activation of torch.nn are supported"
        )
    try:
        layer: torch.nn.Module = (
            torch.nn.LayerNorm(given["dimension"])
            if module.name == "LayerNorm"
            else torch.nn.Linear(given["in_features"], given["out_features"], given["bias"])
        )
        content = file.read_bytes()
        weights = {key.partition(".")[2]: value.float() for key, value in load(content).items()}
        layer.load_state_dict(weights)
    except Exception as error:  # safetensors' own class is not public
        raise ModelError(f"{file} cannot be read ({error}); copy the folder anew") from error
    hashes[file] = hashlib.sha256(content).digest()
    return torch.nn.Sequential(layer, activation())


def _settings(path: Path, module: Module) -> dict[str, Any]:
    try:
        file = path / module.path / "config.json"
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); copy the folder anew") from error
