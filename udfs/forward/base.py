"""The forward pass of whichever backend a spec names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from udfs import devices
from udfs.encoding.pairs import Batch
from udfs.spec import Precision, ScorerSpec


class ModelError(RuntimeError):
    """A checkpoint that cannot be scored with as it is."""


@dataclass(frozen=True)
class BatchOutput:
    """Output of one forward pass over B rows.

    Attributes:
        logits: float32[B], raw.
        padding: int64[B], padding tokens that the layers were given with each row.
        milliseconds: time that the batch took, copies to and from the device included [ms].
    """

    logits: NDArray[np.float32]
    padding: NDArray[np.int64]
    milliseconds: float


class LogitModel(Protocol):
    """Turns a padded batch into one logit per row."""

    def forward(self, batch: Batch) -> BatchOutput:
        """Compute one logit per row.

        Raises:
            torch.OutOfMemoryError, MemoryError: if the batch does not fit.
        """
        ...


def load_model(
    path: Path, spec: ScorerSpec, slot: devices.TaskSlot, precision: Precision
) -> LogitModel:
    """Load weights onto the device of this task.

    Args:
        path: the model's folder; for onnxruntime its exported copy.
        spec: names the backend.
        slot: cores and GPU of the calling task.
        precision: may differ from the spec's, for rows that it cannot hold.

    Raises:
        ModelError, DeviceError: naming what is wrong and the remedy.
    """
    if spec.backend == "tokenizer":
        from udfs.scorers.stub import StubModel

        return StubModel()
    if spec.backend == "onnxruntime":
        from udfs.forward.onnx import OnnxModel

        return OnnxModel.load(path, spec, slot.cpus, precision)
    from udfs.forward.transformers import TorchModel

    return TorchModel.load(path, spec, devices.choose(spec.device, slot), precision)
