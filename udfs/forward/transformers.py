"""A checkpoint run by torch and transformers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from udfs.checkpoint import digest_of, weight_files
from udfs.encoding.pairs import EncodedPairs
from udfs.forward.base import BatchOutput, LogitModel, ModelError
from udfs.forward.heads import AnsweringModel, ModularModel
from udfs.forward.packed import available, pack
from udfs.forward.transfer import now, read, send
from udfs.forward.unpadded import UnpaddedModel, supports
from udfs.spec import Precision, ScorerSpec

_DTYPES: Final[dict[Precision, torch.dtype]] = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip


@dataclass(frozen=True)
class PaddedModel:
    """A sequence-classification model as transformers or `heads` have it, on one device."""

    model: Any
    device: torch.device
    label: int = 0  # whose logit it is

    @torch.inference_mode()
    def forward(self, batch: EncodedPairs) -> BatchOutput:
        """Compute one raw logit per pair."""
        start = now(self.device)
        inputs = {name: send(array, self.device) for name, array in batch.padded().items()}
        logits = self.model(**inputs).logits[:, self.label]
        return read(logits, batch.lengths.max() - batch.lengths, start)


def load(
    path: Path, spec: ScorerSpec, device: torch.device, precision: Precision,
    answers: Sequence[int] = (),
) -> LogitModel:  # fmt: skip
    """Load weights from safetensors, offline.

    Files are read once, for the model and for its digest: one that changes later changes no score.
    `answers`: tokens of a causal language model whose logits are compared.

    Raises:
        ModelError: if a weight is missing, there is no such logit, or the folder is not the one
            that `spec` was made from.
    """
    tensors, hashes = _read_weights(path)
    config, kind = _read_config(path, spec)
    model, info = kind.from_pretrained(
        None, config=config, state_dict=dict(tensors), dtype=_DTYPES[precision],
        local_files_only=True, output_loading_info=True,
    )  # fmt: skip
    if lacking := sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"])):
        raise ModelError(
            f"{len(lacking)} weights of {path} are missing or have another shape, first "
            f"{lacking[0]}; they would be random. Name a complete reranker checkpoint"
        )
    if answers:
        model = AnsweringModel(model, answers, tensors)
    elif spec.modular:
        model = ModularModel(model, path, hashes)
    elif precision != "fp32":
        _keep_head_in_float32(model, tensors)
    # It may be another machine's folder of that name, or one that was replaced since the driver
    # hashed it; scores are kept under that digest. A spec made by hand has none.
    if spec.model_digest and (found := digest_of(path, hashes)) != spec.model_digest:
        raise ModelError(
            f"the model in {path} has the digest {found[:12]} here and had "
            f"{spec.model_digest[:12]} on the driver; copy the folder anew, and change no model "
            "while a job uses it"
        )
    return _on_device(model, device, spec, packed=precision == "bf16" and available())


def load_untrained(path: Path, spec: ScorerSpec, answers: Sequence[int] = ()) -> LogitModel:
    """Return the model with one layer and without its weights, on the CPU."""
    from transformers.initialization import no_init_weights

    config, kind = _read_config(path, spec)
    config.num_hidden_layers = 1
    with no_init_weights():
        model = kind(config).to(_DTYPES[spec.precision])
    if answers:
        model = AnsweringModel(model, answers, {})
    elif spec.modular:
        model = ModularModel(model, path, {})
    return _on_device(model, torch.device("cpu"), spec, packed=False)


def _on_device(model: Any, device: torch.device, spec: ScorerSpec, *, packed: bool) -> LogitModel:
    """Return the fastest way to run a model: the BERT family needs no padding."""
    on_gpu, known = device.type == "cuda", supports(model, device)
    if known and packed and not on_gpu:
        pack(model)
    if on_gpu:
        # It makes a plan for every shape of a batch, which takes longer than the batch itself.
        torch.backends.cuda.enable_cudnn_sdp(False)
    model = model.to(device).eval()
    if known and spec.attention != "eager":
        return UnpaddedModel(model, ragged=on_gpu, label=spec.label or 0)
    return PaddedModel(model, device, spec.label or 0)


def _read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[Path, bytes]]:
    """Read all weight files: tensors by name, and the SHA-256 of each file."""
    from safetensors.torch import load

    tensors: dict[str, torch.Tensor] = {}
    hashes = {}
    for file in weight_files(path):
        content = file.read_bytes()
        hashes[file] = hashlib.sha256(content).digest()
        try:
            tensors |= load(content)
        except Exception as error:  # safetensors' own class is not public
            raise ModelError(f"{file} cannot be read ({error}); copy the folder anew") from error
    return tensors, hashes


def _read_config(path: Path, spec: ScorerSpec) -> tuple[Any, Any]:
    """Return the configuration and the class of the model, without making its weights."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    code = spec.trust_remote_code
    config: Any = AutoConfig.from_pretrained(
        str(path), local_files_only=True, trust_remote_code=code
    )
    auto: Any = AutoModelForCausalLM if spec.prompt else AutoModelForSequenceClassification
    if spec.modular:
        auto = AutoModel
    elif spec.prompt is None and config.num_labels != 1 and spec.label is None:
        raise ModelError(f"{path} has {config.num_labels} labels; one logit is needed")
    if spec.attention != "auto":
        config._attn_implementation = spec.attention
    with torch.device("meta"):
        empty = auto.from_config(config, trust_remote_code=code)
    return config, type(empty)


def _keep_head_in_float32(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Run the last layers in float32, as half precision would merge scores that differ.

    bf16 has 8 bits of mantissa: of 64 pairs only about 10 keep a logit of their own. The head is a
    thousandth of the work. Its weights are taken from the checkpoint, as the model's are rounded.
    """
    for name, module in model.named_children():
        if name == model.base_model_prefix:
            continue
        module.float().register_forward_pre_hook(_inputs_to_float32)
        for part, weight in module.named_parameters(prefix=name):
            weight.data = tensors.get(part, weight.data).float()


def _inputs_to_float32(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in inputs
    )
