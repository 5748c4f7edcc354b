"""A cross-encoder: encode, forward, finish, with recovery from out-of-memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udfs import devices
from udfs.encoding.batching import plan_batches
from udfs.encoding.pairs import EncodedPairs, PairEncoder
from udfs.encoding.prompts import make_encoder
from udfs.encoding.truncation import Counts
from udfs.forward.base import BatchOutput, LogitModel, ModelError, load_model
from udfs.limits import catch_oom, limited
from udfs.scorers.base import NONFINITE, OK, OUT_OF_MEMORY, Scores, new_scores
from udfs.spec import Precision, ScorerSpec

_FEW_TOKENS: Final = 8


class _Batch(NamedTuple):
    """A batch that was started."""

    rows: NDArray[np.intp]  # [B], of the window
    lengths: Counts  # int64[B] [tokens]
    output: BatchOutput | None  # None: no memory even for its only pair
    milliseconds: float  # time to compute it, if its output does not tell


def check_model(path: Path, spec: ScorerSpec) -> None:
    """Score two pairs with a random one-layer copy of the model, on the CPU, without its weights.

    For the driver, before any table is read: an architecture that cannot score shows here. With
    `max_pairs=1` nothing is padded, and it is one pair.

    Raises:
        ModelError: if the tokenizer or the architecture cannot score a pair.
    """
    from udfs.forward.transformers import load_untrained

    try:
        encoder = make_encoder(path, spec)
    except ValueError as error:
        raise ModelError(str(error)) from error
    try:
        pairs = encoder.encode(["a", "a"], ["b", "b b b"])
        model = load_untrained(path, spec, encoder.answers)
        model.forward(pairs.take(range(min(2, spec.max_pairs))))
    except ModelError:
        raise
    except Exception as error:  # whatever the code of an architecture raises
        raise ModelError(
            f"the model in {path} cannot score a pair ({type(error).__name__}: {error}); use "
            "another checkpoint, or mend its config.json and tokenizer"
        ) from error


class Scorer:
    """A cross-encoder and its tokenizer, ready on a device.

    One thread may encode while another scores; neither stage takes two threads at once.

    Args:
        encoder: tokenises pairs.
        load: loads the model in a precision; once more in float32 if `spec` names another one and
            a row's logit is too large for that.
        spec: precision and sizes of batches.
        encodes_ahead: whether the device leaves this process's cores free while it computes.
    """

    def __init__(
        self,
        encoder: PairEncoder,
        load: Callable[[Precision], LogitModel],
        spec: ScorerSpec,
        *,
        encodes_ahead: bool = False,
    ) -> None:
        """Load the model."""
        self.encodes_ahead = encodes_ahead
        #: Batches that did not fit into memory and were halved.
        self.halvings = 0
        self.encoder = encoder
        self._spec = spec
        self._scored = self._rescored = 0
        self._model = load(spec.precision)
        # None, for good, if there is no memory for it, too.
        self._in_float32 = cache(lambda: catch_oom(lambda: load("fp32")))

    @classmethod
    def load(cls, path: Path, spec: ScorerSpec, slot: devices.TaskSlot) -> Scorer:
        """Load a model's folder for a task; ModelError, ValueError or DeviceError if it cannot."""
        devices.prepare_process(slot)
        # The tokenizer first: loading the weights ends with the check that the folder is unchanged.
        encoder = make_encoder(path, spec)
        on_gpu = spec.backend == "torch" and devices.choose(spec.device, slot).type == "cuda"
        load = partial(load_model, path, spec, slot, answers=encoder.answers)
        return cls(encoder, load, spec, encodes_ahead=on_gpu)

    def score(self, queries: Sequence[str], docs: Sequence[str]) -> Scores:
        """Score N pairs of texts; N may be 0."""
        return self.score_encoded(self.encode(queries, docs))

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> EncodedPairs:
        """Tokenise and cut N pairs; each distinct query is tokenised once."""
        return self.encoder.encode(queries, docs)

    def score_encoded(self, pairs: EncodedPairs) -> Scores:
        """Score N encoded pairs, batch by batch, longest first.

        Raises:
            DeviceError: if the device has no memory left for a pair of a few tokens either: others
                hold it, and the task is for another time or place.
        """
        scores = new_scores(len(pairs.lengths))
        scores.n_tokens = pairs.lengths
        scores.truncated = pairs.truncated
        self._score_rows(self._model, pairs, np.arange(len(scores)), scores)
        if (scores.status == OUT_OF_MEMORY).any():
            self._refuse_full_device(pairs)
        lost = _nonfinite(scores)
        in_float32 = self._in_float32() if lost.size and self._spec.precision != "fp32" else None
        if in_float32 is not None:
            self._score_rows(in_float32, pairs, lost, scores)
            self._rescored += lost.size
            lost = _nonfinite(scores)
        self._scored += len(scores)
        scores.status[lost] = NONFINITE
        scores.logit[scores.status != OK] = np.nan
        return scores

    @property
    def rescored(self) -> float:
        """Share of all pairs so far that were scored again in float32."""
        return self._rescored / max(self._scored, 1)

    def _refuse_full_device(self, pairs: EncodedPairs) -> None:
        shortest = pairs.take([int(pairs.lengths.argmin())])
        few = slice(0, _FEW_TOKENS)
        types = None if shortest.types is None else shortest.types[few]
        ids, length = shortest.ids[few], np.minimum(shortest.lengths, _FEW_TOKENS)
        few_tokens = replace(shortest, ids=ids, types=types, lengths=length)
        if self._forward(self._model, few_tokens) is None:
            raise devices.DeviceError(
                f"no memory is left for a pair of {length[0]} tokens: other processes hold it; "
                "give the device to fewer tasks (spark.task.resource.gpu.amount=1), or lower "
                "batching.max_tokens"
            )

    def _score_rows(
        self, model: LogitModel, pairs: EncodedPairs, rows: NDArray[np.intp], scores: Scores
    ) -> None:
        """Score pairs batch by batch; while a GPU computes one, the next is made and sent."""
        limits = {"max_tokens": self._spec.max_tokens, "max_pairs": self._spec.max_pairs}
        planned = plan_batches(pairs.lengths[rows].tolist(), **limits)
        running: deque[_Batch] = deque()
        for batch_rows in planned:
            for batch in self._start(model, pairs, rows[batch_rows]):
                running.append(batch)
                if len(running) > 1:
                    self._finish(running.popleft(), scores)
        while running:
            self._finish(running.popleft(), scores)

    def _start(
        self, model: LogitModel, pairs: EncodedPairs, rows: NDArray[np.intp]
    ) -> Iterator[_Batch]:
        """Start one batch; halve it for as long as the device runs out of memory."""
        batch = pairs.take(rows)
        start = time.perf_counter()
        try:
            output = self._forward(model, batch)
        except ValueError as error:
            # BART and T5 want as many </s> in each row, and a text may spell one out.
            if len(rows) == 1 or "<eos>" not in str(error):
                raise
        else:
            if output is not None or len(rows) == 1:
                yield _Batch(rows, batch.lengths, output, (time.perf_counter() - start) * 1000.0)
                return
            self.halvings += 1
        for half in np.array_split(rows, 2):
            yield from self._start(model, pairs, half)

    def _forward(self, model: LogitModel, batch: EncodedPairs) -> BatchOutput | None:
        """Start to compute one batch; None when memory ran out."""
        with limited(self._spec.batch_timeout):
            return catch_oom(lambda: model.forward(batch))

    def _finish(self, batch: _Batch, scores: Scores) -> None:
        """Wait for a batch that was started, and write what came out."""
        rows, lengths, output, milliseconds = batch
        if output is None:
            scores.status[rows] = OUT_OF_MEMORY
            return
        if output.wait is not None:
            with limited(self._spec.batch_timeout):
                milliseconds = output.wait()
        scores.logit[rows] = output.logits
        scores.n_padded[rows] = output.padding
        scores.device_ms[rows] = milliseconds * lengths / lengths.sum()


def _nonfinite(scores: Scores) -> NDArray[np.intp]:
    return np.flatnonzero((scores.status == OK) & ~np.isfinite(scores.logit))
