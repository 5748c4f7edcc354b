"""A rerank server on this machine that speaks every dialect strictly, and fails on demand.

It is written from the services' documentation and not from `udfs.scorers.dialects`. A score is a
checksum of query and document, so that every answer can be held against `logit_of`. What it has
answered with a score it counts as paid for, pair by pair.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "zqxsentinelkey0123456789"
Fault = Callable[[int, list[str]], str | None]


@dataclass(frozen=True)
class Api:
    """Requests of a dialect: path, key of the documents, further keys with their types, limit."""

    path: str
    documents: str
    optional: Mapping[str, type]
    most: int
    refusal: int = 400
    kind: str = "probability"
    names_model: bool = True


APIS = {
    "cohere": Api("/v2/rerank", "documents",
                  {"top_n": int, "max_tokens_per_doc": int, "priority": int}, 10_000),
    "voyage": Api("/v1/rerank", "documents",
                  {"top_k": int, "truncation": bool, "return_documents": bool}, 1000),
    "jina": Api("/v1/rerank", "documents", {"top_n": int, "return_documents": bool}, 1000, 422),
    "vllm": Api("/v1/rerank", "documents",
                {"top_n": int, "truncate_prompt_tokens": int, "use_activation": bool,
                 "instruction": str}, 10**9),
    "tei": Api("/rerank", "texts",
               {"truncate": bool, "truncation_direction": str, "raw_scores": bool,
                "return_text": bool}, 32, 422, names_model=False),
    "infinity": Api("/rerank", "documents",
                    {"return_documents": bool, "raw_scores": bool, "top_n": int}, 2048, 422),
    "nim": Api("/v1/ranking", "passages", {"truncate": str}, 512, 422, "logit"),
    "sglang": Api("/v1/rerank", "documents",
                  {"instruct": str, "top_n": int, "return_documents": bool}, 10**9, kind="logit"),
    "mixedbread": Api("/v1/reranking", "input", {"top_k": int, "return_input": bool}, 1000, 422),
}  # fmt: skip


def logit_of(query: str, doc: str) -> float:
    """The score of a pair, in [-8, 8)."""
    return zlib.crc32(doc.encode(), zlib.crc32(query.encode())) / 2**28 - 8.0


@dataclass
class Server:
    """What a server does, and what it has seen.

    Attributes:
        fault: given the number of a request, from 1, and its documents, what goes wrong.
        delay: time for an answer [s].
        paid: answers by pair.
        started: when each request came [s, monotonic].
        waiting: requests in flight; `most_waiting` at once.
    """

    dialect: str
    fault: Fault = lambda _number, _docs: None
    delay: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    paid: Counter[tuple[str, str]] = field(default_factory=Counter)
    started: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    waiting: int = 0
    most_waiting: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def refuse(self, path: str, body: Any, size: int) -> tuple[int, str] | None:
        """Status and reason for a request that is none of the dialect's."""
        api = APIS[self.dialect]
        if path != api.path:
            return 404, "no such path"
        if size > 2_000_000 and self.dialect == "tei":
            return 413, "too large"
        needed = {"query", api.documents, *(["model"] if api.names_model else [])}
        if not isinstance(body, dict) or needed - set(body):
            return api.refusal, "keys are missing"
        if unknown := set(body) - needed - set(api.optional):
            return api.refusal, f"unknown keys {unknown}"
        wrong = [k for k, kind in api.optional.items() if k in body and type(body[k]) is not kind]
        texts = [body["query"], *body[api.documents]]
        if self.dialect == "nim":
            wrong += [] if all(set(text) == {"text"} for text in texts) else ["text"]
            texts = [text["text"] for text in texts]
        if wrong or not all(isinstance(text, str) for text in texts):
            return api.refusal, f"wrong types {wrong}"
        if not 1 <= len(texts) - 1 <= api.most:
            return api.refusal, "too many documents, or none"
        return None

    def answer(self, query: str, docs: list[str], body: Mapping[str, Any], fault: str) -> Any:
        """The answer of the dialect, best first."""
        logit = {"vllm": not body.get("use_activation", True)}.get(
            self.dialect, body.get("raw_scores", APIS[self.dialect].kind == "logit")
        )
        scores: list[Any] = [logit_of(query, doc) for doc in docs]
        if not logit:
            scores = [1 / (1 + math.exp(-score)) for score in scores]
        rows = list(enumerate(scores))
        if fault == "index":
            rows[-1] = (len(docs), rows[-1][1])
        if fault == "twice":
            rows[-1] = (0, rows[-1][1])
        if fault == "fewer":
            rows = rows[:-1]
        odd = {"nan": math.nan, "null": None, "huge": 1e39, "text": "0.5"}
        if fault == "beyond":  # what is no probability
            rows[-1] = (rows[-1][0], 7.5)
        if fault in odd:
            rows[-1] = (rows[-1][0], odd[fault])
        nulls = {at for at, doc in enumerate(docs) if "NULL" in doc}
        rows = [(at, None if at in nulls else score) for at, score in rows]
        unpaid = nulls | ({len(docs) - 1} if fault in ("fewer", *odd) else set())
        self.paid.update((query, doc) for at, doc in enumerate(docs) if at not in unpaid)
        rows.sort(key=lambda row: (isinstance(row[1], float), row[1] or 0.0), reverse=True)
        return self.shape(rows, docs)

    def shape(self, rows: list[tuple[int, Any]], docs: list[str]) -> Any:
        """The same rows in the dialect's words."""

        def results(name: str, **more: Any) -> list[dict[str, Any]]:
            return [{"index": at, name: score, **more} for at, score in rows]

        tokens = sum(len(doc) for doc in docs)
        match self.dialect:
            case "cohere":
                meta = {"api_version": {"version": "2"},
                        "billed_units": {"search_units": math.ceil(len(docs) / 100)}}  # fmt: skip
                return {"id": "1", "results": results("relevance_score"), "meta": meta}
            case "voyage":
                data = results("relevance_score")
                return {"object": "list", "data": data, "usage": {"total_tokens": tokens}}
            case "jina":
                return {"model": "m", "results": results("relevance_score"),
                        "usage": {"total_tokens": tokens}}  # fmt: skip
            case "vllm" | "infinity":
                echoed = results("relevance_score", document={"text": "a text that is echoed"})
                return {"id": "1", "results": echoed, "usage": {"total_tokens": tokens}}
            case "nim":
                return {"rankings": results("logit")}
            case "mixedbread":
                return {"data": results("score"), "usage": {"total_tokens": tokens}}
            case "tei":
                return results("score")
        return results("score", document="a text that is echoed", meta_info={})


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            with server.lock:
                server.started.append(time.monotonic())
                number = len(server.started)
                server.waiting += 1
                server.most_waiting = max(server.most_waiting, server.waiting)
            try:
                self._answer(number)
            except OSError:  # the client is gone
                self.close_connection = True
            finally:
                with server.lock:
                    server.waiting -= 1

        def _answer(self, number: int) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            time.sleep(server.delay)
            if self.headers.get("authorization") != f"Bearer {KEY}":
                return self._send(401, {"message": "invalid api token"})
            body = json.loads(raw)
            if refused := server.refuse(self.path, body, len(raw)):
                # A server may quote what it was sent.
                return self._send(refused[0], {"message": refused[1], "input": body})
            docs, query = body[APIS[server.dialect].documents], body["query"]
            if server.dialect == "nim":
                docs, query = [doc["text"] for doc in docs], query["text"]
            fault = server.fault(number, docs) or ""
            if any("REFUSE" in doc for doc in docs):
                fault = str(APIS[server.dialect].refusal)
            elif any("CRASH" in doc for doc in docs):
                fault = "500"
            with server.lock:
                server.bodies.append(body)
                server.sizes.append(len(docs))
            self._fail_or_send(fault, query, docs, body)

        def _fail_or_send(self, fault: str, query: str, docs: list[str], body: Any) -> None:
            status, _, wait = fault.partition(" after ")
            if status.isdigit():
                if wait == "date":
                    wait = formatdate(time.time() + 2, usegmt=True)
                return self._send(
                    int(status), {"detail": docs}, {"retry-after": wait} if wait else {}
                )
            if fault == "reset":
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.connection.close()
                self.close_connection = True
                return None
            if fault == "slow":
                time.sleep(2.0)
            with server.lock:
                answer = server.answer(query, docs, body, fault)
            content = json.dumps(answer).encode()
            if fault == "garbage":
                content = b"<html>bad gateway</html>"
            if fault == "cut":  # whole as HTTP, cut as JSON
                content = content[: len(content) // 2]
            if fault == "broken off":
                self._send(200, content, length=2 * len(content))
                self.close_connection = True
                return None
            return self._send(200, content, server.headers)

        def _send(
            self, status: int, answer: Any, headers: Mapping[str, str] | None = None,
            length: int | None = None,
        ) -> None:  # fmt: skip
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(length or len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def serving(
    dialect: str, fault: Fault = lambda _number, _docs: None, **keys: Any
) -> Iterator[Server]:
    """A server in threads of this process."""
    server = Server(dialect, fault, **keys)
    with _Listening(("127.0.0.1", 0), _handler(server)) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        listening.shutdown()
