"""A checkpoint's ONNX copy (`jobs.scoring.onnx_export`) in ONNX Runtime, on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.encoding.pairs import EncodedPairs
from udfs.forward.base import BatchOutput, ModelError
from udfs.spec import Precision, ScorerSpec

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGE: Final = "onnxruntime"
REMEDY: Final = "pip install 'spark-rerank[onnx]'"
_ERRORS_ONLY: Final = 3  # of onnxruntime's severities
# How onnxruntime words it, which has no exception of its own for it.
_NO_MEMORY: Final = ("bad_alloc", "bad allocation", "Failed to allocate memory")


@dataclass(frozen=True)
class OnnxModel:
    """A graph with one logit per row.

    In int8, rows go through it one by one: activations are rounded by the largest of all that are
    in a batch, so that a pair scored otherwise in other company (by 0.3 of a logit on TREC DL19).
    """

    session: InferenceSession
    one_by_one: bool

    @classmethod
    def load(cls, path: Path, spec: ScorerSpec, threads: int, precision: Precision) -> OnnxModel:
        """Read the graph of a precision.

        Raises:
            ModelError: if ONNX Runtime is not here, or is another one than the driver's.
        """
        if (found := version()) is None:
            raise ModelError(f"this executor has no {PACKAGE}; {REMEDY} there, as on the driver")
        if not spec.runtime.startswith(found):
            raise ModelError(
                f"this executor has {found}, the scores are to be those of {spec.runtime}; "
                "install the same version everywhere"
            )
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # A thread that waits by spinning takes the core from the worker beside it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Plans memory for shapes that come again; batches come in every shape.
        options.enable_mem_pattern = False
        graph = str(graph_file(path, precision))
        session = InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return cls(session, one_by_one=precision == "int8")

    def forward(self, batch: EncodedPairs) -> BatchOutput:
        """Compute one raw logit per pair; MemoryError if the batch does not fit."""
        rows = range(len(batch.lengths))
        parts = [batch.take([row]) for row in rows] if self.one_by_one else [batch]
        logits = np.concatenate([self._run(part.padded()) for part in parts])
        padding = np.concatenate([part.lengths.max() - part.lengths for part in parts])
        return BatchOutput(logits, padding)

    def _run(self, given: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        given.setdefault("token_type_ids", np.zeros_like(given["input_ids"]))
        inputs = {each.name: given[each.name] for each in self.session.get_inputs()}
        try:
            outputs: Any = self.session.run(None, inputs)
        except Exception as error:  # onnxruntime's own classes are not public
            if any(words in str(error) for words in _NO_MEMORY):
                raise MemoryError(f"{PACKAGE} has no memory for a batch") from None
            raise
        logits: NDArray[np.float32] = outputs[0][:, 0]
        return logits


def graph_file(folder: Path, precision: Precision) -> Path:
    """Return where the graph of a precision is."""
    return folder / f"{precision}.onnx"


def version(package: str = PACKAGE) -> str | None:
    """Return `PACKAGE VERSION` as it is installed here; None where it is not."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None
