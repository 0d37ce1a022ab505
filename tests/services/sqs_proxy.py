"""What stands between a client and SQS: it counts what is asked, and answers as a test wants, or not at all."""

import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

RESET: Final = 0
_HOP: Final = ("connection", "content-length", "date", "server", "transfer-encoding")


@dataclass(kw_only=True)
class SqsProxy:
    """A proxy before a server on 127.0.0.1.

    Attributes:
        port: Where it listens.
        asked: How often each operation was asked for.
        faults: For an operation, the answers that its next requests get: a status and SQS' name of the error; RESET
            closes the connection without one.
        most_at_once: For an operation, how many requests were open at the same time.
    """

    target_port: int
    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    most_at_once: Counter[str] = field(default_factory=Counter)
    _faults: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    _open: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, operation: str, status: int, name: str = "", *, times: int = 1, text: str = "as told") -> None:
        """Answer the next requests of an operation with an error."""
        with self._lock:
            self._faults.setdefault(operation, []).extend([(status, name, text)] * times)

    def is_through(self, operation: str) -> bool:
        """Tell whether an operation has had all of its errors, and was asked for again."""
        with self._lock:
            return not self._faults.get(operation)

    def begin(self, operation: str) -> tuple[int, str, str] | None:
        """Note a request; return the error that it gets."""
        with self._lock:
            self.asked[operation] += 1
            self._open[operation] += 1
            self.most_at_once[operation] = max(self.most_at_once[operation], self._open[operation])
            faults = self._faults.get(operation)
            return faults.pop(0) if faults else None

    def end(self, operation: str) -> None:
        """Note the end of a request."""
        with self._lock:
            self._open[operation] -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Print nothing: a client may go at any time."""


@contextmanager
def open_sqs_proxy(target_port: int) -> Iterator[SqsProxy]:
    """Run a proxy before the server at a port."""
    proxy = SqsProxy(target_port=target_port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.begin(operation)
            try:
                if fault is None:
                    self._pass_on(body)
                else:
                    self._refuse(*fault)
            except OSError:
                self.close_connection = True
            finally:
                proxy.end(operation)

        def _pass_on(self, body: bytes) -> None:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            # Also where its client goes meanwhile: a socket that nobody closes is told of in whichever test runs then.
            with closing(http.client.HTTPConnection("127.0.0.1", proxy.target_port)) as target:
                # The addresses of queues in its answers lead here.
                target.request("POST", self.path, body, headers)
                answer = target.getresponse()
                kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
                self._answer(answer.status, answer.read(), kept)

        def _refuse(self, status: int, name: str, text: str) -> None:
            if status == RESET:
                self.close_connection = True
                self.connection.close()
            else:
                answer = {"__type": f"com.amazonaws.sqs#{name}", "message": text}
                self._answer(status, json.dumps(answer).encode(), [])

        def _answer(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = _Server(("127.0.0.1", 0), Handler)
    proxy.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield proxy
    server.shutdown()
    server.server_close()
    thread.join()
