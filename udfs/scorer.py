"""Pairs in, scores out: encode, forward, finish, with recovery from out-of-memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from udfs import devices
from udfs.backends import LogitModel, load_model
from udfs.batching import plan_batches
from udfs.encode import EncodedPairs, PairEncoder
from udfs.scores import NONFINITE, OK, OUT_OF_MEMORY, Scores
from udfs.spec import ScorerSpec
from udfs.watchdog import limited

_NO_MEMORY: Final = "DefaultCPUAllocator: can't allocate memory"


class PairScorer(Protocol):
    """Anything that scores pairs of texts."""

    def score(self, queries: Sequence[str], docs: Sequence[str]) -> Scores:
        """Score N pairs."""
        ...


class Scorer:
    """A cross-encoder and its tokenizer, ready on a device. Not thread-safe.

    Args:
        encoder: tokenises pairs.
        model: the forward pass.
        spec: sizes of batches.
        in_float32: loads the same model in float32, for rows that half precision cannot hold;
            None if `model` is float32 already.
    """

    def __init__(
        self,
        encoder: PairEncoder,
        model: LogitModel,
        spec: ScorerSpec,
        in_float32: Loader | None = None,
    ) -> None:
        """Keep the parts; nothing is loaded here."""
        self._encoder = encoder
        self._model = model
        self._spec = spec
        self._in_float32 = in_float32
        #: Batches that did not fit into memory, and were halved.
        self.halvings = 0
        self.spent = {"tokenising": 0.0, "planning": 0.0, "forward": 0.0}  # [s] since loading

    @classmethod
    def load(cls, path: Path, spec: ScorerSpec, slot: devices.TaskSlot) -> Scorer:
        """Load tokenizer and weights onto the device of this task.

        Raises:
            ModelError, ValueError, DeviceError: naming what is wrong and the remedy.
        """
        devices.prepare_process(slot)
        model = load_model(path, spec, slot, spec.precision)
        again = None if spec.precision == "fp32" else Loader(path, spec, slot)
        return cls(PairEncoder.load(path, spec), model, spec, again)

    def score(self, queries: Sequence[str], docs: Sequence[str]) -> Scores:
        """Score N pairs of texts; N may be 0."""
        start = time.perf_counter()
        pairs = self._encoder.encode(queries, docs)
        encoded = time.perf_counter()
        scores = Scores.empty(len(pairs.docs))
        scores.n_tokens[:] = pairs.lengths
        scores.truncated[:] = pairs.truncated
        plan = plan_batches(
            pairs.lengths.tolist(),
            max_tokens=self._spec.max_tokens,
            max_pairs=self._spec.max_pairs,
        )
        planned = time.perf_counter()
        for rows in plan:
            self._score_rows(pairs, rows, scores)
        self._finish(pairs, scores)
        self.spent["tokenising"] += encoded - start
        self.spent["planning"] += planned - encoded
        self.spent["forward"] += time.perf_counter() - planned
        return scores

    def _score_rows(self, pairs: EncodedPairs, rows: Sequence[int], scores: Scores) -> None:
        """Forward one batch; halve it for as long as the device runs out of memory."""
        logits, milliseconds = self._forward(pairs, rows)
        if logits is not None:
            at = np.asarray(rows)
            scores.logit[at] = logits
            scores.n_padded[at] = self._model.padding(pairs.lengths[at])
            scores.device_ms[at] = milliseconds * pairs.lengths[at] / pairs.lengths[at].sum()
        elif len(rows) == 1:
            scores.status[rows[0]] = OUT_OF_MEMORY
        else:
            self.halvings += 1
            half = len(rows) // 2
            self._score_rows(pairs, rows[:half], scores)
            self._score_rows(pairs, rows[half:], scores)

    def _forward(
        self, pairs: EncodedPairs, rows: Sequence[int]
    ) -> tuple[NDArray[np.float32] | None, float]:
        """Logits and time [ms] of one batch; None when memory ran out.

        The retry happens in the caller: inside `except` the traceback still holds the tensors
        that have to be freed first.
        """
        import torch

        start = time.perf_counter()
        try:
            with limited(self._spec.batch_timeout):
                logits = self._model.forward(self._encoder.collate(pairs, rows))
        except (torch.OutOfMemoryError, MemoryError):
            logits = None
        except RuntimeError as error:
            # torch has a class of its own for a GPU that is full, and none for a CPU.
            if _NO_MEMORY not in str(error):
                raise
            logits = None
        if logits is None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        return logits, (time.perf_counter() - start) * 1000.0

    def _finish(self, pairs: EncodedPairs, scores: Scores) -> None:
        """Give rows whose logit is not a number a second chance in float32, then mark them."""
        lost = self._nonfinite(scores)
        if lost.size and self._in_float32:
            if again := self._in_float32.scorer(self._encoder):
                for row in lost.tolist():
                    again._score_rows(pairs, [row], scores)
            lost = self._nonfinite(scores)
        scores.status[lost] = NONFINITE
        scores.logit[scores.status != OK] = np.nan

    @staticmethod
    def _nonfinite(scores: Scores) -> NDArray[np.intp]:
        return np.flatnonzero((scores.status == OK) & ~np.isfinite(scores.logit))


class Loader:
    """The same model in float32, loaded when a row first needs it."""

    def __init__(self, path: Path, spec: ScorerSpec, slot: devices.TaskSlot) -> None:
        """Remember where the model is."""
        self._path, self._spec, self._slot = path, spec, slot
        self._loaded: Scorer | None = None

    def scorer(self, encoder: PairEncoder) -> Scorer | None:
        """The float32 scorer, sharing the tokenizer; None where the device has no room for it."""
        import torch

        if self._loaded is None:
            try:
                model = load_model(self._path, self._spec, self._slot, "fp32")
            except torch.OutOfMemoryError:
                return None
            self._loaded = Scorer(encoder, model, self._spec)
        return self._loaded
