"""A proxy in front of an S3 server that throttles, breaks off, waits and forbids, as networks and stores do."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("slow_down", "internal_error", "reset_before", "reset_in_body", "lost_answer", "time_out", "forbidden")
_ERROR = "<Error><Code>{code}</Code><Message>so it is</Message></Error>"
_CODES = {"slow_down": (503, "SlowDown"), "internal_error": (500, "InternalError"), "forbidden": (403, "AccessDenied")}


@dataclass
class Mood:
    """What the proxy does to requests: one fault of `faults` with that probability."""

    faults: Sequence[str]
    probability: float
    time_out_seconds: float
    seed: int

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self.done = Counter[str]()

    def next_fault(self) -> str:
        """The fault for the next request, or ""."""
        with self._lock:
            fault = self._random.choice(self.faults) if self._random.random() < self.probability else ""
            self.done[fault or "passed"] += 1
            return fault


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind: str, mood: Mood) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlsplit(behind).netloc
        self.mood = mood

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away; that is the point."""


class _Handler(BaseHTTPRequestHandler):
    server: _Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        fault = self.server.mood.next_fault()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.close_connection = True
        if fault == "reset_before":
            return
        if fault == "time_out":
            time.sleep(self.server.mood.time_out_seconds)
            return
        if fault in _CODES:
            status, code = _CODES[fault]
            self._answer(status, [], _ERROR.format(code=code).encode(), promised=None)
            return
        connection = http.client.HTTPConnection(self.server.behind, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers.items()))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "lost_answer":  # it was done, and nobody hears of it
            return
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() in _KEPT]
        promised = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        is_cut = fault == "reset_in_body" and len(content) > 1
        self._answer(answer.status, headers, content[: len(content) // 2] if is_cut else content, promised=promised)

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, promised: str | None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", promised or str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


_KEPT = {"etag", "content-type", "content-range", "accept-ranges", "last-modified"}


@contextmanager
def faulty_proxy(
    behind: str,
    *,
    seed: int,
    probability: float = 0.3,
    faults: Sequence[str] = FAULTS[:-1],
    time_out_seconds: float = 1.5,
) -> Iterator[tuple[str, Mood]]:
    """The endpoint of a proxy before the server at `behind`, and what it does."""
    mood = Mood(faults, probability, time_out_seconds, seed)
    with _Proxy(behind, mood) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", mood
        finally:
            server.shutdown()
            thread.join()
