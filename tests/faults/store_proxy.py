"""A way to the store that understands HTTP: it can answer with errors, hang, cut bodies short, or lose answers.

It also writes down every result marker that the store accepts, which nobody else can see afterwards.
"""

import http.client
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

MODES: Final = ("open", "errors", "hangs", "truncates", "loses_answers", "cut", "slow")
_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})
_HANG_SECONDS: Final = 60
_SLOW_SECONDS: Final = 0.3


class StoreProxy:
    """One node's way to the store.

    Args:
        port: of the store, on 127.0.0.1.
        on_marker: called with the path and the store's status after each attempt to write a result marker.

    Attributes:
        mode: one of `MODES`.
    """

    def __init__(self, port: int, *, on_marker: Callable[[str, int], None]) -> None:
        self.mode = "open"
        self.target = port
        self.on_marker = on_marker
        self.restored = threading.Event()
        # The first answer for each object is lost: were all of them, nobody would get as far as the result marker.
        self.lost: set[str] = set()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """What `JOBQUEUE_STORAGE_ENDPOINT` takes."""
        return f"http://127.0.0.1:{self.port}"

    def break_down(self, mode: str) -> None:
        """Misbehave from now on."""
        self.restored.clear()
        self.lost.clear()
        self.mode = mode

    def restore(self) -> None:
        """Behave again."""
        self.mode = "open"
        self.restored.set()

    def close(self) -> None:
        """Stop listening."""
        self.restore()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Passes one request on, in the mood that its proxy is in."""

    protocol_version = "HTTP/1.1"
    proxy: StoreProxy

    def handle_one_request(self) -> None:
        with suppress(OSError):
            super().handle_one_request()
            return
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
        """Say nothing."""

    def do_GET(self) -> None:
        self._pass()

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815 - the names are the library's

    def _pass(self) -> None:
        body = self._read_body()
        mode = self.proxy.mode
        if mode in ("hangs", "cut"):
            self.proxy.restored.wait(_HANG_SECONDS)
            self.close_connection = True
            return
        if mode == "errors":
            self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
            return
        if mode == "slow":
            time.sleep(_SLOW_SECONDS)
        status, headers, content = self._ask(body)
        path = self.path.partition("?")[0]
        if self.command == "PUT" and path.endswith("/RESULT"):
            self.proxy.on_marker(path, status)
        if mode == "loses_answers" and self.command == "PUT" and path not in self.proxy.lost:
            self.proxy.lost.add(path)
            self.close_connection = True
            self.connection.close()
            return
        self._answer(status, headers, content, is_cut_short=mode == "truncates" and len(content) > 1)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.target, timeout=_HANG_SECONDS)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
            # A HEAD's length is that of the body which it does not have.
            kept = [
                each for each in answer.getheaders() if self.command == "HEAD" or each[0].lower() not in _HOP_BY_HOP
            ]
        except OSError:
            return 502, [], b""
        else:
            return answer.status, kept, content
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, *, is_cut_short: bool = False
    ) -> None:
        self.send_response_only(status)
        is_head = self.command == "HEAD"
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP or (is_head and name.lower() == "content-length"):
                self.send_header(name, value)
        if not (is_head and any(name.lower() == "content-length" for name, _ in headers)):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not is_head:
            self.wfile.write(content[: len(content) // 2] if is_cut_short else content)
        if is_cut_short:
            self.close_connection = True
            self.connection.close()
