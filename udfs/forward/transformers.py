"""A checkpoint in memory: padded ids in, float32 logits out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.checkpoint import digest_of
from udfs.encoding.pairs import Batch
from udfs.memory import Peak, peak
from udfs.scores import Forwarded
from udfs.spec import Precision, ScorerSpec

if TYPE_CHECKING:
    import torch

_TORCH_NAMES: Final[dict[Precision, str]] = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}


class ModelError(RuntimeError):
    """A checkpoint that loads, but not as the cross-encoder it was taken for."""


class TorchModel:
    """A Hugging Face sequence-classification model with one logit, on one device."""

    def __init__(self, model: Any, device: torch.device, *, flat: bool) -> None:
        """Take a model in evaluation mode on `device`; `flat`: see `udfs.forward.unpadded`."""
        self._model = model
        self._device = device
        self._flat = flat

    @classmethod
    def load(
        cls, path: Path, spec: ScorerSpec, device: torch.device, precision: Precision
    ) -> TorchModel:
        """Load weights from safetensors, offline.

        Raises:
            ModelError: if a weight the model needs is not in the checkpoint, it has more than
                one logit, or the folder is not the one that `spec` was made from.
        """
        _refuse_another_model(path, spec.model_digest)
        import torch
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            str(path),
            dtype=getattr(torch, _TORCH_NAMES[precision]),
            attn_implementation=None if spec.attention == "auto" else spec.attention,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
        )
        model, info = loaded
        if lacking := sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"])):
            raise ModelError(
                f"{len(lacking)} weights of {path} are missing or have another shape, first "
                f"{lacking[0]}; they would be random. Name a complete reranker checkpoint"
            )
        if model.config.num_labels != 1:
            raise ModelError(f"{path} has {model.config.num_labels} labels; one logit is needed")
        if precision != "fp32":
            _keep_head_in_float32(model)
        if precision == "bf16" and device.type == "cpu":
            from udfs.forward import packed

            if packed.available():
                packed.pack(model)
        model = model.to(device).eval()
        # On a GPU attention has kernels for padded batches; nothing was measured there yet.
        if device.type == "cpu" and spec.attention != "eager":
            from udfs.forward import unpadded as flat

            if flat.supports(model):
                return cls(flat.FlatModel(model), device, flat=True)
        return cls(model, device, flat=False)

    def forward(self, batch: Batch) -> Forwarded:
        """One raw logit per row."""
        return self.start(batch)()

    def start(self, batch: Batch) -> Callable[[], Forwarded]:
        """Have the device begin; what is returned waits for the logits.

        A GPU computes on its own: the next batch can be started before the last one is waited for.
        A CPU has done it all when this returns.
        """
        import torch

        on_gpu = self._device.type == "cuda"
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.type_ids is not None:
            inputs["token_type_ids"] = batch.type_ids
        # A thread's own device is the first one: marks in its queue would tell of another GPU.
        at_device = torch.cuda.device(self._device) if on_gpu else nullcontext()
        with torch.inference_mode(), at_device:
            clock = _GpuClock() if on_gpu else _CpuClock()
            found = self._model(**{key: self._to_device(array) for key, array in inputs.items()})
            logits: torch.Tensor = (found if self._flat else found.logits[:, 0]).float()
            clock.stop()

        def wait() -> Forwarded:
            on_host: NDArray[np.float32] = logits.cpu().numpy()
            lengths = batch.attention_mask.sum(axis=1)
            return Forwarded(on_host, self._padding(lengths), clock.milliseconds())

        return wait

    def peak(self) -> Peak:
        """What this process has held."""
        return peak()

    def _to_device(self, array: NDArray[np.int64]) -> torch.Tensor:
        """Copy without waiting: from memory that is not pinned, CUDA waits for its turn."""
        import torch

        tensor = torch.from_numpy(array)
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _padding(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[B]: padding that the layers are given with each row of a batch [tokens]."""
        missing: NDArray[np.int64] = lengths.max() - lengths
        if self._flat:
            missing = self._model.padding(lengths)
        return missing


class _CpuClock:
    """Time on a device that has done its work when a call returns."""

    def __init__(self) -> None:
        self._start = self._end = time.perf_counter()

    def stop(self) -> None:
        self._end = time.perf_counter()

    def milliseconds(self) -> float:
        return (self._end - self._start) * 1000.0


class _GpuClock:
    """Time on a GPU, between two marks among its work: waiting in its queue does not count."""

    def __init__(self) -> None:
        import torch

        mark: Any = torch.cuda.Event
        self._start, self._end = mark(enable_timing=True), mark(enable_timing=True)
        self._start.record()

    def stop(self) -> None:
        self._end.record()

    def milliseconds(self) -> float:
        """To be asked when the logits are there."""
        return float(self._start.elapsed_time(self._end))


def _refuse_another_model(path: Path, digest: str) -> None:
    """Hash what is about to be loaded, as its scores will be kept under this digest.

    The driver has hashed the folder as it saw it. Here it may be another machine's folder of that
    name, or one that was replaced or damaged since. An empty digest, of a spec made by hand,
    stands for any folder.
    """
    found = digest_of(path) if digest else ""
    if found != digest:
        raise ModelError(
            f"the model in {path} has the digest {found[:12]} here and had {digest[:12]} on the "
            "driver; copy the folder anew, and change no model while a job uses it"
        )


def _keep_head_in_float32(model: Any) -> None:
    """Run the last layers in float32, as half precision would merge scores that differ.

    bf16 has 8 bits of mantissa: of 64 pairs only about 10 keep a logit of their own. The head is
    a thousandth of the work, and float32 weights there keep the order of what the encoder found.
    """
    for name, module in model.named_children():
        if name != model.base_model_prefix:
            module.float()
            module.register_forward_pre_hook(_inputs_to_float32)


def _inputs_to_float32(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    import torch

    return tuple(
        value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in inputs
    )
