"""Linear layers in the layout that oneDNN multiplies fastest, packed once at load.

`torch.nn.Linear` in bf16 on a CPU packs its weight again in every call, copies its bias into the
result first, and leaves the activation to another pass over memory. torch's compiler uses operators
without these losses; as it takes a C++ compiler and half a minute, layers are exchanged by hand.
"""

from typing import Any

import torch


def available() -> bool:
    """Return whether this torch has the operators, and this CPU what they need in bf16."""
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not torch._C._has_mkldnn or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(torch.nn.Module):
    """A bf16 linear layer for inference on a CPU; `activation` is applied before rounding."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        """Pack the weight; the layer itself can be dropped."""
        super().__init__()
        # Plain attributes: a packed weight has no storage that `state_dict` could save.
        self._bias = None if layer.bias is None else layer.bias.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
        self.activation = ("none", "")

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """bf16[..., in] -> bf16[..., out]."""
        kind, variant = self.activation
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self._bias, kind, [], variant
        )
        return result

    def plus(self, rows: torch.Tensor, former: torch.Tensor) -> torch.Tensor:
        """The same, added to bf16[..., out] before it is rounded; not behind an activation."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            rows, former, self._weight, self._bias, "add"
        )
        return result


def pack(model: torch.nn.Module) -> None:
    """Exchange every bf16 linear layer of a model, in place.

    Exact GELU is drawn into the layer before it where a module has the two as `dense` and
    `intermediate_act_fn`, as BERT, RoBERTa and XLM-RoBERTa have.
    """
    for name, child in list(model.named_children()):
        if type(child) is torch.nn.Linear and child.weight.dtype == torch.bfloat16:
            setattr(model, name, PackedLinear(child))
        else:
            pack(child)
    dense: Any = getattr(model, "dense", None)
    activation = getattr(model, "intermediate_act_fn", None)
    # transformers' name of the exact GELU; its approximations have others.
    if isinstance(dense, PackedLinear) and type(activation).__name__ == "GELUActivation":
        dense.activation = ("gelu", "none")
        model.intermediate_act_fn = torch.nn.Identity()
