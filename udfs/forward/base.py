"""What every backend offers, and which one a spec names."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from udfs import devices
from udfs.encoding.pairs import EncodedPairs
from udfs.spec import Precision, ScorerSpec

_MULTIPLIER: Final = 2_654_435_761  # Knuth's, of multiplicative hashing


class ModelError(RuntimeError):
    """A checkpoint that cannot be scored with as it is."""


class BatchOutput(NamedTuple):
    """Output of one forward pass over B pairs."""

    logits: NDArray[np.float32]  # [B], raw; only after `wait`
    padding: NDArray[np.int64]  # [B], padding tokens that the layers were given with each pair
    # On a GPU: waits until the logits are there, and returns how long the GPU took for them [ms].
    wait: Callable[[], float] | None = None


class LogitModel(Protocol):
    """Turns a batch of pairs into one logit each."""

    def forward(self, batch: EncodedPairs) -> BatchOutput:
        """Compute the logits, on a GPU without waiting; no memory is told as `catch_oom` knows."""
        ...


class StubModel:
    """Backend `tokenizer`: a checksum of the token ids in place of the forward pass."""

    def forward(self, batch: EncodedPairs) -> BatchOutput:
        """Return logits in [-8, 8) that do not depend on the batch; no padding is computed."""
        inputs = batch.padded()
        ids = np.where(inputs["attention_mask"] == 1, inputs["input_ids"] + 1, 0).astype(np.uint64)
        place = np.arange(1, ids.shape[1] + 1, dtype=np.uint64)
        sums = (ids * place).sum(1) * np.uint64(_MULTIPLIER) % np.uint64(2**32)
        return BatchOutput((sums / 2**28 - 8.0).astype(np.float32), np.zeros(len(ids), np.int64))


def load_model(
    path: Path, spec: ScorerSpec, slot: devices.TaskSlot, precision: Precision,
    answers: Sequence[int] = (),
) -> LogitModel:  # fmt: skip
    """Load a model's folder, for onnxruntime its exported copy, onto the device of a task.

    The precision may differ from the spec's, for rows that it cannot hold. `answers`: tokens of a
    causal language model whose logits are compared.

    Raises:
        ModelError, DeviceError: naming what is wrong and the remedy.
    """
    if spec.backend == "tokenizer":
        return StubModel()
    if spec.backend == "onnxruntime":
        from udfs.forward.onnx import OnnxModel

        return OnnxModel.load(path, spec, slot.cpus, precision)
    from udfs.forward.transformers import load

    return load(path, spec, devices.choose(spec.device, slot), precision, answers)
