"""A checkpoint run by torch and transformers."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.checkpoint import digest_of
from udfs.encoding.pairs import Batch, PairEncoder
from udfs.forward.base import BatchOutput, ModelError
from udfs.spec import Precision, ScorerSpec
from udfs.weights import weight_files

if TYPE_CHECKING:
    import torch

_DTYPES: Final[dict[Precision, str]] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class TorchModel:
    """A Hugging Face sequence-classification model with one logit, on one device.

    The BERT family runs without padding on a CPU (`udfs.forward.unpadded`) and with packed layers
    there in bf16 (`udfs.forward.packed`); any other architecture runs as transformers has it.
    """

    def __init__(
        self, model: Any, device: torch.device, *, unpadded: bool, packed: bool = False
    ) -> None:
        """Take a model of transformers.

        Args:
            model: on any device.
            device: where it is to score.
            unpadded: whether to leave padding out where that is possible.
            packed: whether its bf16 layers are to be packed where that is possible.
        """
        from udfs.forward.unpadded import UnpaddedModel, supports

        known = device.type == "cpu" and supports(model)
        if known and packed:
            from udfs.forward.packed import available, pack

            if available():
                pack(model)
        self._device = device
        self._unpadded = known and unpadded
        model = model.to(device).eval()
        self._model = UnpaddedModel(model) if self._unpadded else model

    @classmethod
    def load(
        cls, path: Path, spec: ScorerSpec, device: torch.device, precision: Precision
    ) -> TorchModel:
        """Load weights from safetensors, offline.

        Weight files are read into memory once; the model is made of, and the digest taken over,
        what was read. A file that changes later changes no score.

        Raises:
            ModelError: if a weight is missing, there is more than one logit, or the folder is not
                the one that `spec` was made from.
        """
        import torch

        tensors, hashes = _read_weights(path)
        config, kind = _read_config(path, spec)
        loaded: Any = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=getattr(torch, _DTYPES[precision]),
            local_files_only=True,
            output_loading_info=True,
        )
        model, info = loaded
        if lacking := sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"])):
            raise ModelError(
                f"{len(lacking)} weights of {path} are missing or have another shape, first "
                f"{lacking[0]}; they would be random. Name a complete reranker checkpoint"
            )
        if precision != "fp32":
            _keep_head_in_float32(model, tensors)
        _refuse_another_model(path, spec.model_digest, hashes)
        return cls(model, device, unpadded=spec.attention != "eager", packed=precision == "bf16")

    def forward(self, batch: Batch) -> BatchOutput:
        """Compute one raw logit per row."""
        import torch

        start = time.perf_counter()
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.type_ids is not None:
            inputs["token_type_ids"] = batch.type_ids
        with torch.inference_mode():
            tensors = {k: torch.from_numpy(a).to(self._device) for k, a in inputs.items()}
            output = self._model(**tensors)
            logits: torch.Tensor = output if self._unpadded else output.logits[:, 0]
            on_host: NDArray[np.float32] = logits.float().cpu().numpy()
        lengths = batch.attention_mask.sum(axis=1)
        padding: NDArray[np.int64] = lengths.max() - lengths
        if self._unpadded:
            padding = self._model.padding(lengths)
        return BatchOutput(on_host, padding, (time.perf_counter() - start) * 1000.0)


def check_model(path: Path, spec: ScorerSpec) -> None:
    """Score two pairs with a random one-layer copy of the model, on the CPU, without its weights.

    For the driver, before any table is read: an architecture that cannot score shows here. With
    `max_pairs=1` nothing is padded, and it is one pair.

    Raises:
        ModelError: if the tokenizer or the architecture cannot score a pair.
    """
    import torch
    from transformers.initialization import no_init_weights

    try:
        encoder = PairEncoder.load(path, spec)
        config, kind = _read_config(path, spec)
        config.num_hidden_layers = 1
        with no_init_weights():
            model: Any = kind(config)
        tried = TorchModel(
            model.to(getattr(torch, _DTYPES[spec.precision])),
            torch.device("cpu"),
            unpadded=spec.attention != "eager",
        )
        pairs = encoder.encode(["a", "a"], ["b", "b b b"])
        tried.forward(encoder.collate(pairs, range(min(2, spec.max_pairs))))
    except ModelError:
        raise
    except Exception as error:  # whatever the code of an architecture raises
        raise ModelError(
            f"the model in {path} cannot score a pair ({type(error).__name__}: {error}); use "
            "another checkpoint, or mend its config.json and tokenizer"
        ) from error


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
    import torch
    from transformers import AutoConfig
    from transformers import AutoModelForSequenceClassification as AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    code = spec.trust_remote_code
    config: Any = AutoConfig.from_pretrained(
        str(path), local_files_only=True, trust_remote_code=code
    )
    if config.num_labels != 1:
        raise ModelError(f"{path} has {config.num_labels} labels; one logit is needed")
    if spec.attention != "auto":
        config._attn_implementation = spec.attention
    with torch.device("meta"):
        empty = AutoModel.from_config(config, trust_remote_code=code)  # type: ignore[no-untyped-call]
    return config, type(empty)


def _refuse_another_model(path: Path, digest: str, hashes: dict[Path, bytes]) -> None:
    """Compare what was loaded with what the driver hashed; scores are kept under its digest.

    Here it may be another machine's folder of that name, or one that was replaced since. An empty
    digest, of a spec made by hand, stands for any folder.
    """
    found = digest_of(path, hashes) if digest else ""
    if found != digest:
        raise ModelError(
            f"the model in {path} has the digest {found[:12]} here and had {digest[:12]} on the "
            "driver; copy the folder anew, and change no model while a job uses it"
        )


def _keep_head_in_float32(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Run the last layers in float32, as half precision would merge scores that differ.

    bf16 has 8 bits of mantissa: of 64 pairs only about 10 keep a logit of their own. The head is
    a thousandth of the work, and float32 weights there keep the order of what the encoder found.
    Its weights are taken from the checkpoint again, as the model's are rounded already.
    """
    for name, module in model.named_children():
        if name == model.base_model_prefix:
            continue
        module.float()
        for part, weight in module.named_parameters(prefix=name):
            if part in tensors:
                weight.data = tensors[part].float()
        module.register_forward_pre_hook(_inputs_to_float32)


def _inputs_to_float32(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    import torch

    return tuple(
        value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in inputs
    )
