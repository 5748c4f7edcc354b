"""Pairs in, scores out: encode, forward, finish, with recovery from out-of-memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from udfs import devices
from udfs.encoding.batching import plan_batches
from udfs.encoding.pairs import EncodedPairs, PairEncoder
from udfs.forward.base import LoadModel, LogitModel, load_model
from udfs.memory import Peak, unless_full
from udfs.scores import NONFINITE, OK, OUT_OF_MEMORY, Forwarded, Scores
from udfs.spec import ScorerSpec
from udfs.watchdog import limited


class PairScorer(Protocol):
    """Anything that scores pairs of texts."""

    def score(self, queries: Sequence[str], docs: Sequence[str]) -> Scores:
        """Score N pairs."""
        ...

    def peak(self) -> Peak:
        """Most memory that a process scoring with it has held."""
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
    def load(
        cls,
        path: Path,
        spec: ScorerSpec,
        slot: devices.TaskSlot,
        load: LoadModel = load_model,
    ) -> Scorer:
        """Load tokenizer and weights.

        Args:
            path: the model's folder.
            spec: the scorer.
            slot: cores and GPU of the calling task.
            load: where the weights come from; onto this process's device unless it says otherwise.

        Raises:
            ModelError, ValueError, DeviceError: naming what is wrong and the remedy.
        """
        devices.prepare_process(slot)
        model = load(path, spec, slot, spec.precision)
        again = None if spec.precision == "fp32" else Loader(path, spec, slot, load)
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

    def peak(self) -> Peak:
        """Most memory that a process holding the model, or this one, has held."""
        return self._model.peak()

    def _score_rows(self, pairs: EncodedPairs, rows: Sequence[int], scores: Scores) -> None:
        """Forward one batch; halve it for as long as the device runs out of memory."""
        found = self._forward(pairs, rows)
        if found is not None:
            at = np.asarray(rows)
            scores.logit[at] = found.logits
            scores.n_padded[at] = found.padding
            scores.device_ms[at] = found.milliseconds * pairs.lengths[at] / pairs.lengths[at].sum()
        elif len(rows) == 1:
            scores.status[rows[0]] = OUT_OF_MEMORY
        else:
            self.halvings += 1
            half = len(rows) // 2
            self._score_rows(pairs, rows[:half], scores)
            self._score_rows(pairs, rows[half:], scores)

    def _forward(self, pairs: EncodedPairs, rows: Sequence[int]) -> Forwarded | None:
        """One batch; None when memory ran out."""
        with limited(self._spec.batch_timeout):
            return unless_full(lambda: self._model.forward(self._encoder.collate(pairs, rows)))

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

    def __init__(
        self,
        path: Path,
        spec: ScorerSpec,
        slot: devices.TaskSlot,
        load: LoadModel = load_model,
    ) -> None:
        """Remember where the model is."""
        self._path, self._spec, self._slot, self._load = path, spec, slot, load
        self._loaded: Scorer | None = None

    def scorer(self, encoder: PairEncoder) -> Scorer | None:
        """The float32 scorer, sharing the tokenizer; None where the device has no room for it."""
        if self._loaded is None:
            model = unless_full(lambda: self._load(self._path, self._spec, self._slot, "fp32"))
            if model is None:
                return None
            self._loaded = Scorer(encoder, model, self._spec)
        return self._loaded
