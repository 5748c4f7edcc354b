"""A checkpoint's ONNX copy in ONNX Runtime, on a CPU: padded ids in, float32 logits out.

The copy is made by `jobs.scoring.onnx_export`: the tokenizer's files, and one graph per precision.
"""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.encoding.pairs import Batch
from udfs.forward.base import BatchOutput, ModelError
from udfs.spec import Precision, ScorerSpec

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGE: Final = "onnxruntime"
REMEDY: Final = "pip install 'spark-rerank[onnx]'"
_ERRORS_ONLY: Final = 3  # of onnxruntime's severities
# How onnxruntime words it, which has no exception of its own for it.
_NO_MEMORY: Final = ("bad_alloc", "bad allocation", "Failed to allocate memory")


class OnnxModel:
    """A graph with one logit per row.

    Args:
        session: ready to run.
        one_by_one: whether rows go through the graph alone. Activations are rounded to int8 by the
            largest of all that are in a batch, so that a pair scored otherwise in other company
            (by 0.3 of a logit on TREC DL19); alone, its score is its own.
    """

    def __init__(self, session: InferenceSession, *, one_by_one: bool) -> None:
        """Keep the parts."""
        self._session = session
        self._one_by_one = one_by_one
        self._inputs = {given.name for given in session.get_inputs()}

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

    def forward(self, batch: Batch) -> BatchOutput:
        """One raw logit per row.

        Raises:
            torch.OutOfMemoryError: as the other backend does.
        """
        start = time.perf_counter()
        lengths = batch.attention_mask.sum(axis=1)
        if self._one_by_one:
            rows = [self._run(_row(batch, at, n)) for at, n in enumerate(lengths)]
            logits, padding = np.concatenate(rows), np.zeros_like(lengths)
        else:
            logits, padding = self._run(batch), lengths.max() - lengths
        return BatchOutput(logits, padding, (time.perf_counter() - start) * 1000.0)

    def _run(self, batch: Batch) -> NDArray[np.float32]:
        types = np.zeros_like(batch.input_ids) if batch.type_ids is None else batch.type_ids
        given = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": types,
        }
        try:
            found: Any = self._session.run(None, {name: given[name] for name in self._inputs})
        except Exception as error:  # onnxruntime's own classes are not public
            if not any(words in str(error) for words in _NO_MEMORY):
                raise
            found = None
        if found is None:
            import torch

            raise torch.OutOfMemoryError(f"{PACKAGE} has no memory for {batch.input_ids.shape}")
        logits: NDArray[np.float32] = found[0][:, 0]
        return logits


def _row(batch: Batch, at: int, length: int) -> Batch:
    """One row without its padding."""
    row = (slice(at, at + 1), slice(0, length))
    types = None if batch.type_ids is None else batch.type_ids[row]
    return Batch(batch.input_ids[row], batch.attention_mask[row], types)


def graph_file(folder: Path, precision: Precision) -> Path:
    """Where the graph of a precision is."""
    return folder / f"{precision}.onnx"


def version() -> str | None:
    """`onnxruntime VERSION` as it is installed here; None where it is not."""
    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:
        return None
