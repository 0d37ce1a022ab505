"""The two long answers of an engine about a container: its output, and the word that it ended.

Both are asked for before the container starts, so nothing is missed, and their sockets are read here: the client
library copies frame by frame, and offers no wait that can be given up and taken up again.
"""

import select
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from threading import Lock
from typing import Any, Literal

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.engine import Engine, translated

_BLOCK_BYTES = 256 * 1024
_UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}


class Attachment:
    """The output of a container from its first byte, straight from the engine: a slow reader slows the container."""

    def __init__(self, engine: Engine, identity: str) -> None:
        streams = {"stdout": 1, "stderr": 1, "stream": 1}
        self._answer, self._socket = _ask(engine, f"{identity}/attach", streams, headers=_UPGRADE)

    def blocks(self) -> Iterator[bytes]:
        """Yield what arrives until the engine closes, which it does at the container's end, and when it dies itself."""
        # A killed engine resets the connection when something of ours was not read yet.
        with translated("pass the output on"), suppress(ConnectionResetError):
            while block := self._socket.recv(_BLOCK_BYTES):
                yield block

    def close(self) -> None:
        """Hang up; a reader in another thread sees the end."""
        _hang_up(self._answer, self._socket)


class ExitWatch:
    """The engine's promise to say when a container ends.

    An engine that dies closes the connection without the word, which is what tells its death from the container's end.

    Args:
        condition: `next-exit` before a start, `not-running` for a container that may have ended already.
    """

    def __init__(self, engine: Engine, identity: str, condition: Literal["next-exit", "not-running"]) -> None:
        # The headers come at once, the body at the end.
        self._answer, self._socket = _ask(engine, f"{identity}/wait", {"condition": condition})
        self._lock = Lock()
        # The word about an end that lies behind may have come with the headers: it is asked for, not waited for.
        try:
            self._has_ended = condition == "not-running" and not _is_running(engine, identity)
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> bool:
        """Return whether the container ended, after at most `seconds`.

        Raises:
            RuntimeFailure: the engine went away and cannot keep the promise.
        """
        if self._has_ended:
            return True
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLIN)
        except ValueError as error:
            raise RuntimeFailure("the watch over a container was closed") from error
        if poll.poll(max(0.0, seconds) * 1000):
            self._read()
        return self._has_ended

    def close(self) -> None:
        """Give up waiting."""
        _hang_up(self._answer, self._socket)

    def _read(self) -> None:
        with self._lock, translated("wait for a container"):
            if not self._has_ended:
                self._has_ended = "StatusCode" in self._answer.json()
                self._wake_others()

    def _wake_others(self) -> None:
        """End the waiting of other threads: the word has been read, the engine says nothing more here."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)


def read_log(
    engine: Engine, identity: str, *, since_seconds: float = 0, until_seconds: float | None = None
) -> Generator[bytes, None, None]:
    """Yield the frames of what the engine keeps of the output, and of what comes, until the container ends.

    With `since_seconds` (of the epoch) only what was printed after it; with `until_seconds` only what was printed
    before it, without waiting for more.
    """
    wanted: dict[str, str | int] = {"stdout": 1, "stderr": 1, "since": f"{since_seconds:.9f}"}
    wanted |= {"follow": 1} if until_seconds is None else {"follow": 0, "until": f"{until_seconds:.9f}"}
    answer, connection = _ask(engine, f"{identity}/logs", wanted, verb="get")
    try:
        with translated("read a container's log"):
            yield from answer.raw.stream(_BLOCK_BYTES, decode_content=False)
    finally:
        _hang_up(answer, connection)


def _is_running(engine: Engine, identity: str) -> bool:
    with engine.client("inspect a container") as client:
        return bool(client.inspect_container(identity)["State"]["Running"])


def _ask(
    engine: Engine,
    path: str,
    wanted: Mapping[str, str | int],
    *,
    verb: Literal["get", "post"] = "post",
    headers: Mapping[str, str] | None = None,
) -> tuple[Any, socket.socket]:
    with engine.client(f"open {path.rpartition('/')[2]}") as client:
        url = f"{client.base_url}/v{client.api_version}/containers/{path}"
        answer = client.request(verb, url, params=dict(wanted), headers=dict(headers or {}), stream=True)
        try:
            # The library's own way to the socket, which it needs for the same purpose and keeps to itself.
            connection = client._get_raw_response_socket(answer)  # type: ignore[attr-defined]  # noqa: SLF001
        except BaseException:
            answer.close()
            raise
        plain: socket.socket = getattr(connection, "_sock", connection)
        # A number of our own, because the library closes its own as soon as it has read an answer to the end, while
        # other threads may be waiting on it. An encrypted connection has no second one.
        ours = plain.dup() if type(plain) is socket.socket else plain
        ours.settimeout(None)
        return answer, ours


def _hang_up(answer: Any, connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    answer.close()
    connection.close()
