"""Backend `remote`: asks a server for scores over HTTP, and knows when to stop.

Nothing is raised for what a server does: a task that ends with an error loses what it has paid
for. Pairs without an answer stay `UNANSWERED`, and `Usage.ended` says why.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import httpx
import numpy as np

from udfs.scorers import dialects
from udfs.scorers.base import OK, UNANSWERED, Scores, Usage, new_scores
from udfs.scorers.dialects import DIALECTS
from udfs.scorers.pace import LONGEST_WAIT, Pace, is_exhausted, wanted_wait
from udfs.spec import RemoteSpec

_REFUSED: Final = "remote_refused"
_MALFORMED: Final = "remote_malformed"
_NO_ANSWER: Final = 0  # in place of a status: a reset, a timeout, an answer cut short
_BUSY: Final = (429, 503, 529)  # all requests wait
_FAILING: Final = (_NO_ANSWER, 408, 409, 500, 502, 504)  # this one waits
_REFUSING: Final = (400, 413, 422, 424)  # some document is to blame; 424 is TEI's NaN
_KEY_REFUSED: Final = (401, 403)
# Failures of one request, while others are answered, until a document is to blame.
_TRIES: Final = 6
# Documents rejected before any is scored, after which it is no document that is to blame.
_REJECTS: Final = 20
_FIRST_WAIT: Final = 0.5  # s; doubled from try to try


class _RejectedError(Exception):
    """The server does not score the documents of a request: their status, and what it does."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(status, why)
        self.status, self.why = status, why


class RemoteScorer:
    """Asks for the scores of the documents of a query together, several requests at a time."""

    encodes_ahead = False
    rescored = 0.0

    def __init__(self, spec: RemoteSpec) -> None:
        """Read the key; connect to nothing yet."""
        self._spec = spec
        self._url = spec.url.rstrip("/") + DIALECTS[spec.dialect].path
        self._pace, self._stop = Pace(spec.requests_per_minute), threading.Event()
        self._lock = threading.Lock()  # of what follows
        self._usage = Usage()
        self._scored = self._rejected = 0
        self._answered = 0.0  # when the last good answer came
        self._failing: float | None = None  # since when there was none
        headers = {"content-type": "application/json"}
        try:
            if key := dialects.read_key(spec.key_env, spec.key_file):
                headers["authorization"] = f"Bearer {key}"
        except ValueError as error:
            self._usage = Usage(ended=str(error), refused=True)
            self._stop.set()
        limits = httpx.Limits(max_connections=spec.concurrency)
        self._client = httpx.Client(headers=headers, timeout=spec.timeout, limits=limits)

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> list[tuple[str, str]]:
        """Return the pairs as they are."""
        return list(zip(queries, docs, strict=True))

    def score_encoded(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """Ask for N pairs; a row says `ok`, why it was rejected, or that it was not answered."""
        scores = new_scores(len(pairs), UNANSWERED)
        docs = [doc for _, doc in pairs]
        sizes = [len(doc.encode()) for doc in docs]
        rows_of: dict[str, list[int]] = {}
        for row, (query, _) in enumerate(pairs):
            rows_of.setdefault(query, []).append(row)
        keys = DIALECTS[self._spec.dialect]
        limits = {
            "most": min(self._spec.documents, keys.most), "most_bytes": keys.most_bytes
        }  # fmt: skip
        requests = [
            (query, rows)
            for query, all_rows in rows_of.items()
            for rows in dialects.plan_requests(sizes, all_rows, **limits)
        ]
        with ThreadPoolExecutor(self._spec.concurrency, "remote") as pool:
            for done in [pool.submit(self._fill, scores, docs, *asked) for asked in requests]:
                done.result()
        return scores

    def take_usage(self) -> Usage:
        """Return what was used since the last call."""
        with self._lock:
            taken, self._usage = self._usage, replace(self._usage, requests=0, units=0.0, tokens=0)
        return taken

    def _fill(
        self, scores: Scores, docs: Sequence[str], query: str, rows: Sequence[int],
        again: bool = False,
    ) -> None:  # fmt: skip
        """Write the scores of some documents of a query; halve what the server rejects.

        What an answer leaves out is asked for once more (`again`), by itself.
        """
        start = time.perf_counter()
        try:
            answer = self._ask(query, [docs[row] for row in rows])
        except _RejectedError as error:
            if len(rows) == 1:
                self._reject(scores, rows, error.status, error.why)
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]) if len(rows) > 1 else ():
                self._fill(scores, docs, query, half)
            return
        if answer is None:
            return
        at, known = np.array(rows), np.isfinite(answer)
        scores.logit[at[known]] = dialects.to_logits(self._spec, answer[known])
        scores.device_ms[at] += (time.perf_counter() - start) * 1000.0 / len(rows)
        scores.status[at[known]] = OK
        if lost := at[~known].tolist():
            if again:
                self._reject(scores, lost, _MALFORMED, "answers without a score")
            else:
                self._fill(scores, docs, query, lost, again=True)

    def _ask(self, query: str, docs: Sequence[str]) -> dialects.Answer | None:
        """Return scores, NaN where the answer has none; None once the server is given up.

        Raises:
            _RejectedError: if these documents need not be asked for again, all together.
        """
        body, started = dialects.make_request(self._spec, query, docs), time.monotonic()
        tries = failures = malformed = 0
        while True:
            self._pace.wait(self._stop)
            if self._stop.is_set():
                return None
            status, headers, content = self._post(body)
            tries += 1
            if status == httpx.codes.OK:
                try:
                    return self._accept(headers, content, len(docs))
                except (ValueError, RecursionError) as error:
                    malformed += 1
                    if malformed > 1:
                        why = f"answers what is none of remote.dialect ({error})"
                        if not self._scored:
                            self._give_up(why, refused=True)
                        raise _RejectedError(_MALFORMED, why) from None
            elif status in _REFUSING:
                raise _RejectedError(_REFUSED, f"answers HTTP {status}")
            elif status in _BUSY or status in _FAILING:
                failures += status in _FAILING
                if failures >= _TRIES and self._answered > started:
                    raise _RejectedError(_REFUSED, f"answers {_name(status)}")
                self._wait(status, headers, tries)
            elif status in _KEY_REFUSED:
                self._give_up(
                    f"refuses the key (HTTP {status}); check remote.key_env", refused=True
                )
            else:
                self._give_up(
                    f"answers HTTP {status}; check remote.url, remote.dialect and remote.model",
                    refused=True,
                )

    def _post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and content of an answer; `_NO_ANSWER` if there is none."""
        try:
            answer = self._client.post(self._url, content=body)
        except httpx.RequestError:
            return _NO_ANSWER, {}, b""
        finally:
            self._count(Usage(1))
        return answer.status_code, answer.headers, answer.content

    def _accept(self, headers: Mapping[str, str], content: bytes, count: int) -> dialects.Answer:
        """Read an answer; ValueError if it is none of the dialect's."""
        parsed = json.loads(content)
        units, tokens = dialects.read_usage(parsed)
        self._count(Usage(0, units, tokens))
        scores = dialects.read_answer(self._spec, parsed, count)
        with self._lock:
            self._scored += int(np.isfinite(scores).sum())
            self._answered, self._failing = time.monotonic(), None
        if is_exhausted(headers):
            self._pace.pause(wanted_wait(headers) or 0.0)
        return scores

    def _wait(self, status: int, headers: Mapping[str, str], tries: int) -> None:
        """Wait before another try; give up if there was no good answer for too long."""
        now, patience = time.monotonic(), self._spec.patience
        with self._lock:
            self._failing = self._failing or now
            left = self._failing + patience - now
        wanted = wanted_wait(headers)
        if left <= 0 or (wanted or 0.0) > left:
            self._give_up(
                f"has not answered for remote.patience={patience:g} s, but {_name(status)}"
            )
            return
        if wanted is None:
            wanted = min(_FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)
        wanted = min(max(wanted, _FIRST_WAIT / 2), left)
        if status in _BUSY:
            self._pace.pause(wanted)
        else:
            self._stop.wait(wanted)

    def _reject(self, scores: Scores, rows: Sequence[int], status: str, why: str) -> None:
        """Reject documents, and the server if it rejects all that it gets."""
        scores.status[rows] = status
        with self._lock:
            self._rejected += len(rows)
            hopeless = not self._scored and self._rejected >= _REJECTS
        if hopeless:
            self._give_up(
                f"{why} to every document; check remote.model and remote.parameters", True
            )

    def _give_up(self, why: str, refused: bool = False) -> None:
        """Ask for nothing any more, in this process and run."""
        self._count(Usage(ended=f"the server of remote.url {why}", refused=refused))
        self._stop.set()

    def _count(self, usage: Usage) -> None:
        with self._lock:
            self._usage += usage


def _name(status: int) -> str:
    return f"HTTP {status}" if status else "a connection that failed or timed out"
