"""What the kernels can take, in numbers. Needs neither torch nor llvmlite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

ROWS: Final = 6  # rows of a tile; linear layers are given a multiple of it
COLUMNS: Final = 16  # columns of a tile, and of a panel of packed weights
DEEPEST: Final = 4096  # inputs of a layer
# Norms of a row and of a column. Rounding adds sqrt(4096) / 2 = 32 at most, and a little is left
# for the rounding of the norm itself: (46200 + 32)^2 < 2^31.
NORM: Final = 46200.0
LARGEST: Final = 32767.0  # magnitude of an int16
# Attention works on whole tiles: it reads this many rows behind the last token, and writes fewer.
BEHIND: Final = 16

# Those of `udfs.forward.unpadded`, which cannot be imported without torch.
ARCHITECTURES: Final = (
    "BertForSequenceClassification", "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification", "CamembertForSequenceClassification",
)  # fmt: skip
_EXACT_GELU: Final = ("gelu", "gelu_python")  # as transformers names it
_REMEDY: Final = "use model.precision=fp32"


def unsupported(config: Mapping[str, Any]) -> str | None:
    """Why a model cannot be computed in int16, with the remedy; None if it can.

    Args:
        config: the model's config.json. What it leaves out is as `BertConfig` has it.
    """
    reason = _other_model(config) or _other_widths(config)
    return reason and f"int16 has no kernels for {reason}; {_REMEDY}"


def _other_model(config: Mapping[str, Any]) -> str | None:
    name = (config.get("architectures") or ["a model without a name"])[0]
    if name not in ARCHITECTURES or config.get("is_decoder"):
        return f"{name}{' as a decoder' if config.get('is_decoder') else ''}"
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        return f"position_embedding_type={positions}, only for absolute ones"
    activation = config.get("hidden_act", "gelu")
    if activation not in _EXACT_GELU:
        return f"hidden_act={activation}, only for gelu"
    return None


def _other_widths(config: Mapping[str, Any]) -> str | None:
    hidden, heads = config.get("hidden_size", 768), config.get("num_attention_heads", 12)
    widths = {"hidden_size": hidden, "intermediate_size": config.get("intermediate_size", 3072)}
    for key, width in widths.items():
        if width < 1 or width % COLUMNS or width > DEEPEST:
            return f"{key}={width}, only for multiples of {COLUMNS} up to {DEEPEST}"
    if heads < 1 or hidden % (heads * COLUMNS):
        return f"{heads} heads of {hidden / max(heads, 1):g}, only for multiples of {COLUMNS}"
    if config.get("num_hidden_layers", 12) < 1:
        return "a model without layers"
    return None
