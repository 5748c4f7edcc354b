"""A cross-encoder: encode, forward, finish, with recovery from out-of-memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udfs import devices
from udfs.encoding.batching import plan_batches
from udfs.encoding.pairs import EncodedPairs, PairEncoder
from udfs.forward.base import BatchOutput, LogitModel, load_model
from udfs.memory import catch_oom
from udfs.scorers.base import NONFINITE, OK, OUT_OF_MEMORY, Scores
from udfs.spec import ScorerSpec
from udfs.watchdog import limited


class Scorer:
    """A cross-encoder and its tokenizer, ready on a device.

    One thread may encode while another scores; neither stage takes two threads at once.

    Args:
        encoder: tokenises pairs.
        model: the forward pass.
        spec: sizes of batches.
        load_float32: loads the same model in float32, for rows whose logit half precision cannot
            hold; None if `model` is float32 already.
        encodes_ahead: whether the device leaves this process's cores free while it computes.
    """

    def __init__(
        self,
        encoder: PairEncoder,
        model: LogitModel,
        spec: ScorerSpec,
        load_float32: Callable[[], LogitModel] | None = None,
        *,
        encodes_ahead: bool = False,
    ) -> None:
        """Keep the parts; nothing is loaded here."""
        self.encodes_ahead = encodes_ahead
        #: Batches that did not fit into memory and were halved.
        self.halvings = 0
        self._encoder = encoder
        self._model = model
        self._spec = spec
        self._load_float32 = load_float32
        self._in_float32: Scorer | None = None

    @classmethod
    def load(cls, path: Path, spec: ScorerSpec, slot: devices.TaskSlot) -> Scorer:
        """Load tokenizer and weights.

        Args:
            path: the model's folder.
            spec: the scorer.
            slot: cores and GPU of the calling task.

        Raises:
            ModelError, ValueError, DeviceError: naming what is wrong and the remedy.
        """
        devices.prepare_process(slot)
        # The tokenizer first: loading the weights ends with the check that the folder is unchanged.
        encoder = PairEncoder.load(path, spec)
        model = load_model(path, spec, slot, spec.precision)
        again = None
        if spec.precision != "fp32":
            again = partial(load_model, path, spec, slot, "fp32")
        on_gpu = spec.backend == "torch" and devices.choose(spec.device, slot).type == "cuda"
        return cls(encoder, model, spec, again, encodes_ahead=on_gpu)

    def score(self, queries: Sequence[str], docs: Sequence[str]) -> Scores:
        """Score N pairs of texts; N may be 0."""
        return self.score_encoded(self.encode(queries, docs))

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> EncodedPairs:
        """Tokenise and cut N pairs; each distinct query is tokenised once."""
        return self._encoder.encode(queries, docs)

    def score_encoded(self, pairs: EncodedPairs) -> Scores:
        """Score N encoded pairs, batch by batch, longest first."""
        scores = Scores.empty(len(pairs.docs))
        scores.n_tokens[:] = pairs.lengths
        scores.truncated[:] = pairs.truncated
        for rows in plan_batches(
            pairs.lengths.tolist(),
            max_tokens=self._spec.max_tokens,
            max_pairs=self._spec.max_pairs,
        ):
            self._score_rows(pairs, rows, scores)
        self._finish(pairs, scores)
        return scores

    def _score_rows(self, pairs: EncodedPairs, rows: Sequence[int], scores: Scores) -> None:
        """Score one batch; halve it for as long as the device runs out of memory."""
        output = self._forward(pairs, rows)
        if output is not None:
            at = np.asarray(rows)
            share = pairs.lengths[at] / pairs.lengths[at].sum()
            scores.logit[at] = output.logits
            scores.n_padded[at] = output.padding
            scores.device_ms[at] = output.milliseconds * share
        elif len(rows) == 1:
            scores.status[rows[0]] = OUT_OF_MEMORY
        else:
            self.halvings += 1
            half = len(rows) // 2
            self._score_rows(pairs, rows[:half], scores)
            self._score_rows(pairs, rows[half:], scores)

    def _forward(self, pairs: EncodedPairs, rows: Sequence[int]) -> BatchOutput | None:
        """Compute one batch; None when memory ran out."""
        with limited(self._spec.batch_timeout):
            return catch_oom(lambda: self._model.forward(self._encoder.collate(pairs, rows)))

    def _finish(self, pairs: EncodedPairs, scores: Scores) -> None:
        """Score rows whose logit is not a number again in float32, then mark what is left."""
        lost = self._nonfinite(scores)
        if lost.size and (again := self._float32_scorer()):
            for row in lost.tolist():
                again._score_rows(pairs, [row], scores)
            lost = self._nonfinite(scores)
        scores.status[lost] = NONFINITE
        scores.logit[scores.status != OK] = np.nan

    def _float32_scorer(self) -> Scorer | None:
        """Return the scorer in float32; None if it is this one, or does not fit beside it."""
        if self._in_float32 is None and self._load_float32 is not None:
            model = catch_oom(self._load_float32)
            if model is not None:
                self._in_float32 = Scorer(self._encoder, model, self._spec)
        return self._in_float32

    @staticmethod
    def _nonfinite(scores: Scores) -> NDArray[np.intp]:
        return np.flatnonzero((scores.status == OK) & ~np.isfinite(scores.logit))
