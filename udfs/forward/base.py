"""The forward pass of whichever backend a spec names."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from udfs import devices
from udfs.encoding.pairs import Batch
from udfs.memory import Peak
from udfs.scores import Forwarded
from udfs.spec import Precision, ScorerSpec


class LogitModel(Protocol):
    """Anything that turns a padded batch into one logit per row."""

    def forward(self, batch: Batch) -> Forwarded:
        """One logit per row, and what they cost.

        Raises:
            torch.OutOfMemoryError, MemoryError: if the batch does not fit.
        """
        ...

    def peak(self) -> Peak:
        """Most memory that a process holding the model has held."""
        ...


class LoadModel(Protocol):
    """A way to come by a model, see `load_model`."""

    def __call__(
        self, path: Path, spec: ScorerSpec, slot: devices.TaskSlot, precision: Precision, /
    ) -> LogitModel:
        """Load, or find loaded."""
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
