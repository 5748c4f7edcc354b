"""The forward pass of whichever backend a spec names."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from udfs import devices
from udfs.encode import Batch
from udfs.spec import Precision, ScorerSpec


class LogitModel(Protocol):
    """Anything that turns a padded batch into one logit per row."""

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """float32[B] logits."""
        ...

    def padding(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[B]: padding computed with each row of a batch of these lengths [tokens]."""
        ...


def load_model(
    path: Path, spec: ScorerSpec, slot: devices.TaskSlot, precision: Precision
) -> LogitModel:
    """Load weights onto the device of this task.

    Args:
        path: the model's folder; for onnxruntime its exported copy (see `jobs.export`).
        spec: names the backend.
        slot: cores and GPU of the calling task.
        precision: may differ from the spec's, for rows that it cannot hold.

    Raises:
        ModelError, DeviceError: naming what is wrong and the remedy.
    """
    if spec.backend == "tokenizer":
        from udfs.standins import StubModel

        return StubModel()
    if spec.backend == "onnxruntime":
        from udfs.ort import OnnxModel

        return OnnxModel.load(path, spec, slot.cpus, precision)
    from udfs.model import TorchModel

    return TorchModel.load(path, spec, devices.choose(spec.device, slot), precision)
