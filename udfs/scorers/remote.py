"""Backend `remote`: asks a server for scores over HTTP, and knows when to stop.

Nothing is raised for what a server does: a task that ends with an error loses what it has paid
for. Pairs without an answer stay `UNANSWERED`, and `Usage.ended` says why.
"""

import json
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import httpx
import numpy as np

from udfs.scorers import dialects
from udfs.scorers.base import OK, UNANSWERED, Scores, TextScorer, Usage, new_scores
from udfs.scorers.pace import LONGEST_WAIT, Allowance, Pace, wanted_wait
from udfs.spec import RemoteSpec

_REFUSED: Final = "remote_refused"
_MALFORMED: Final = "remote_malformed"
_NO_ANSWER: Final = 0  # in place of a status: a reset, a timeout, an answer cut short
_BUSY: Final = (429, 503, 529)  # all requests wait
# This one waits; 520 to 527 are Cloudflare's.
_FAILING: Final = (_NO_ANSWER, 408, 409, 500, 502, 504, *range(520, 528))
_REFUSING: Final = (400, 413, 422, 424)  # some document is to blame; 424 is TEI's NaN
# Failures of one request after which its documents are to blame, if the server is well.
_TRIES: Final = 6
# Documents rejected before any is scored, after which it is no document that is to blame.
_REJECTS: Final = 20
_FIRST_WAIT: Final = 0.5  # s; doubled from try to try


class _RejectedError(Exception):
    """Why the server does not score the documents of a request: their status, what it does."""


class RemoteScorer(TextScorer):
    """Asks for the scores of the documents of a query together, several requests at a time."""

    def __init__(self, spec: RemoteSpec) -> None:
        """Read the key; connect to nothing yet."""
        self._spec, self._keys = spec, dialects.DIALECTS[spec.dialect]
        self._pace, self._stop = Pace(spec.requests_per_minute), threading.Event()
        # A request costs a unit at least; what tokens one has, an answer tells.
        self._by_size = self._keys.bills == "token"
        self._allowance = Allowance(None if self._by_size else 1.0)
        self._lock = threading.Lock()  # of what follows
        self._usage, self._scored, self._rejected = Usage(), 0, 0
        self._failing: float | None = None  # since when there was none
        headers = {"content-type": "application/json"}
        try:
            if key := dialects.read_key(spec.key_env, spec.key_file):
                headers["authorization"] = f"Bearer {key}"
        except ValueError as error:
            self._give_up(str(error), refused=True)
        limits = httpx.Limits(max_connections=spec.concurrency)
        self._client = httpx.Client(
            base_url=spec.url, headers=headers, timeout=spec.timeout, limits=limits
        )

    def score_encoded(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """Ask for N pairs; a row says `ok`, why it was rejected, or that it was not answered."""
        scores, docs = new_scores(len(pairs), UNANSWERED), [doc for _, doc in pairs]
        rows_of: dict[str, list[int]] = {}
        for row, (query, _) in enumerate(pairs):
            rows_of.setdefault(query, []).append(row)
        most = dialects.request_size(self._spec)
        if self._spec.max_units:
            share = dialects.work(self._spec, pairs) / self._spec.planned
            self._allowance.grant(self._spec.max_units * share)
        with ThreadPoolExecutor(self._spec.concurrency, "remote") as pool:
            asked = [
                pool.submit(self._fill, scores, docs, query, part)
                for query, rows in rows_of.items()
                for part in dialects.plan(docs, rows, most, self._keys.most_bytes)
            ]
            for request in asked:
                request.result()
        return scores

    def take_usage(self) -> Usage:
        """Return what was used since the last call, and why the server was given up."""
        with self._lock:
            taken, self._usage = self._usage, replace(self._usage, requests=0, units=0.0, tokens=0)
        return taken

    def _fill(
        self, scores: Scores, docs: Sequence[str], query: str, rows: list[int], again: bool = False
    ) -> None:
        """Write scores; halve what is rejected, ask once more (`again`) for what is left out."""
        start = time.perf_counter()
        try:
            answer = self._ask(query, [docs[row] for row in rows])
        except _RejectedError as error:
            if len(rows) == 1:
                return self._reject(scores, rows, *error.args)
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                self._fill(scores, docs, query, half)
            return None
        if answer is None:
            return None
        at, known = np.array(rows), np.isfinite(answer)
        scores.logit[at[known]] = dialects.to_logits(self._spec, answer[known])
        scores.device_ms[at] += (time.perf_counter() - start) * 1000.0 / len(rows)
        scores.status[at[known]] = OK
        lost = at[~known].tolist()
        if lost and again:
            return self._reject(scores, lost, _MALFORMED, "answers without a score")
        return self._fill(scores, docs, query, lost, again=True) if lost else None

    def _ask(self, query: str, docs: Sequence[str]) -> dialects.Answer | None:
        """Return scores, NaN where the answer has none; None once the server is given up.

        Raises:
            _RejectedError: if these documents need not be asked for again, all together.
        """
        body = dialects.make_request(self._spec, query, docs)
        tries = failures = malformed = 0
        while True:
            self._pace.wait(self._stop)
            if self._stop.is_set():
                return None
            answer = self._post(body)
            if answer is None:
                self._count(Usage(ended=f"remote.max_units={self._spec.max_units:g} is used up"))
                return None
            status, tries = answer.status_code, tries + 1
            if status == httpx.codes.OK:
                try:
                    return self._accept(answer, len(docs))
                except (ValueError, RecursionError) as error:
                    malformed += 1
                    why = f"answers what is none of remote.dialect ({error})"
                if malformed > 1 and self._scored:
                    raise _RejectedError(_MALFORMED, why)
                if malformed > 1:
                    self._give_up(f"the server of remote.url {why}", refused=True)
            elif status in _REFUSING:
                raise _RejectedError(_REFUSED, f"answers HTTP {status}")
            elif status in _BUSY or status in _FAILING:
                failures += status in _FAILING
                if failures >= _TRIES and self._is_well():
                    self._failing = None
                    raise _RejectedError(_REFUSED, "fails")
                self._wait(answer, tries)
            else:
                why = "refuses the key" if status in (401, 403) else "does not take requests"
                check = "check the key, remote.url, remote.dialect and remote.model"
                self._give_up(f"remote.url {why} (HTTP {status}); {check}", refused=True)

    def _post(self, body: bytes) -> httpx.Response | None:
        """Return the answer of the server; one with the status `_NO_ANSWER` if there is none.

        None: the units that are left may not be enough.
        """
        size = len(body) if self._by_size else 1
        if self._spec.max_units and not self._allowance.reserve(size):
            return None
        self._count(Usage(requests=1))
        cost = None  # unknown where no answer came: it may have to be paid for
        try:
            answer = self._client.post(self._keys.path, content=body)
            used = _usage_of(answer)
            self._count(used)
            status, by_answer = answer.status_code, self._keys.bills in ("search unit", "token")
            if status == httpx.codes.OK or not by_answer:
                cost = dialects.billed(self._spec.dialect, 1, used.units, used.tokens)
            elif status in _BUSY or answer.is_client_error:  # nothing was computed
                cost = 0.0
        except httpx.RequestError:
            answer = httpx.Response(_NO_ANSWER)
        finally:
            if self._spec.max_units:
                self._allowance.settle(size, cost)
        return answer

    def _is_well(self) -> bool:
        """Return whether the server answers to a document of our own, which is paid for."""
        probe = dialects.make_request(self._spec, "a", ["a"])
        answer = self._post(probe)
        return answer is not None and answer.status_code == httpx.codes.OK

    def _accept(self, answer: httpx.Response, count: int) -> dialects.Answer:
        """Read an answer; ValueError if it is none of the dialect's."""
        scores = dialects.read_answer(self._spec, json.loads(answer.content), count)
        with self._lock:
            self._scored += int(np.isfinite(scores).sum())
            self._failing = None
        self._pace.heed(answer.headers)
        return scores

    def _wait(self, answer: httpx.Response, tries: int) -> None:
        """Wait before another try; give up if there was no good answer for too long."""
        now, patience, status = time.monotonic(), self._spec.patience, answer.status_code
        with self._lock:
            self._failing = self._failing or now
            left = self._failing + patience - now
        wanted = wanted_wait(answer.headers)
        if left <= 0 or (wanted or 0.0) > left:
            last = f"HTTP {status}" if status else "a connection that failed or timed out"
            self._give_up(f"remote.url: no answer in remote.patience={patience:g} s, but {last}")
        if wanted is None:
            wanted = min(_FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)
        wanted = min(max(wanted, _FIRST_WAIT / 2), left)
        if status in _BUSY:
            self._pace.pause(wanted)
        else:
            self._stop.wait(wanted)

    def _reject(self, scores: Scores, rows: list[int], status: str, why: str) -> None:
        """Reject documents, and the server if it rejects all that it gets."""
        scores.status[rows] = status
        with self._lock:
            self._rejected += len(rows)
            hopeless = not self._scored and self._rejected >= _REJECTS
        if hopeless:
            check = "check remote.model and remote.parameters"
            self._give_up(f"remote.url {why} to every document; {check}", refused=True)

    def _give_up(self, why: str, refused: bool = False) -> None:
        """Ask for nothing any more, in this process and run."""
        self._count(Usage(ended=why, refused=refused))
        self._stop.set()

    def _count(self, usage: Usage) -> None:
        with self._lock:
            self._usage += usage


def _usage_of(answer: httpx.Response) -> Usage:
    """Return what an answer says of its cost; nothing where it is none."""
    try:
        return Usage(0, *dialects.read_usage(json.loads(answer.content)))
    except (ValueError, RecursionError):
        return Usage()
