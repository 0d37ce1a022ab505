"""What stands between a worker and its container engine: it passes everything on, but for starts that it refuses."""

import re
import select
import shutil
import socket
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.engine import Engine

SAID = "no runtime is left on this machine"
_START = re.compile(rb"POST \S*/containers/[^/]+/start[? ]")
_ANSWER = f'{{"message": "{SAID}"}}\n'.encode()
_REFUSAL = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_ANSWER), _ANSWER)
)
_PIECE_BYTES = 2**16


class EngineProxy(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """One before an engine.

    Attributes:
        is_refusing: Whether it refuses every start of a container; it begins so.
        refused: How many starts it has refused.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, engine: Engine) -> None:
        self.engine, self.url = engine, f"unix://{path}"
        self.is_refusing, self.refused = True, 0
        super().__init__(str(path), _Handler)


class _Handler(socketserver.BaseRequestHandler):
    """One connection, which is for one request."""

    server: EngineProxy

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.request.recv(_PIECE_BYTES)
            if not piece:
                return
            head += piece
        if self.server.is_refusing and _START.match(head):
            self.server.refused += 1
            self.request.sendall(_REFUSAL)
            return
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(str(self.server.engine.socket))
            engine.sendall(re.sub(rb"(?i)\r\nconnection: keep-alive\r\n", b"\r\nConnection: close\r\n", head))
            _pass_on(self.request, engine)


def _pass_on(client: Any, engine: socket.socket) -> None:
    """Pass on what either says until the engine has no more to say, or the client has gone."""
    others = {client: engine, engine: client}
    while engine in others:
        for source in select.select(list(others), [], [])[0]:
            try:
                piece = source.recv(_PIECE_BYTES)
                others[source].sendall(piece)
            except OSError:
                return
            if not piece:
                other = others.pop(source)
                if source is client:
                    other.shutdown(socket.SHUT_WR)


@contextmanager
def open_engine_proxy(engine: Engine) -> Iterator[EngineProxy]:
    """Run one."""
    # Not in a test's folder: the path of a socket is at most 107 bytes long.
    folder = Path(tempfile.mkdtemp(prefix="jobqueue-proxy-"))
    try:
        with EngineProxy(folder / "socket", engine) as proxy:
            thread = threading.Thread(target=proxy.serve_forever, name="engine-proxy")
            thread.start()
            try:
                yield proxy
            finally:
                proxy.shutdown()
                thread.join()
    finally:
        shutil.rmtree(folder)
