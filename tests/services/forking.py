"""Starting workers as copies of a process that has loaded what they need, where a run of the tests has one."""

import json
import os
import select
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

# The variable that the processes of one test carry, however far they detach themselves.
MARK: Final = "LEAK_CHECKER_MARK"

_TESTS: Final = Path(__file__).parents[1]


class Child(Protocol):
    """What is needed of a process that was started here; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def returncode(self) -> int | None:
        """How it ended, as far as anybody has asked."""

    def poll(self) -> int | None:
        """Return how it ended; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return how it ended once it has."""


class ForkServer:
    """A process that starts copies of itself; its own start takes as long as that of a worker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.fork_server", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**lasting_environment(), "PYTHONPATH": os.pathsep.join([str(_TESTS.parent), str(_TESTS)])},
            start_new_session=True,
        )
        theirs.close()
        self._answers = self._channel.makefile("r")

    @property
    def pid(self) -> int:
        """Its process id: the parent of every copy."""
        return self._process.pid

    def start(self, words: Sequence[str], *, environment: Mapping[str, str], log: Path) -> Child:
        """Start a copy that is `python -m <words>`, in a session of its own; it appends to its log."""
        module, *others = words
        asked = {"module": module, "words": others, "environment": dict(environment)}
        pid = self._ask({**asked, "log": str(log.absolute()), "folder": str(Path.cwd())})
        return _Copy(pid, self)

    def end_of(self, pid: int) -> int:
        """Wait for the end of a copy, once, and return its exit code, or less than 0 for a signal."""
        return os.waitstatus_to_exitcode(self._ask({"ended": pid}))

    def close(self) -> None:
        """End it."""
        self._answers.close()
        self._channel.close()
        self._process.wait()

    def _ask(self, asked: Mapping[str, Any]) -> int:
        with self._lock:
            self._channel.sendall(f"{json.dumps(asked)}\n".encode())
            answer = self._answers.readline()
        if not answer:
            raise RuntimeError(f"the fork server ended, with {self._process.wait()}")
        return int(answer)


class _Copy:
    """One copy of a fork server, for which this process waits as for a child."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._lock = threading.Lock()
        self._file = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._file)

    def poll(self) -> int | None:
        """Return how it ended; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return how it ended once it has.

        Raises:
            subprocess.TimeoutExpired: it has not, after so many seconds.
        """
        code = self._look(None if timeout is None else timeout * 1000)
        if code is None:
            raise subprocess.TimeoutExpired("a copy of the fork server", timeout or 0.0)
        return code

    def _look(self, milliseconds: float | None) -> int | None:
        if self.returncode is None and self._has_ended(milliseconds):
            with self._lock:
                if self.returncode is None:
                    self.returncode = self._server.end_of(self.pid)
        return self.returncode

    def _has_ended(self, milliseconds: float | None) -> bool:
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        return bool(poll.poll(milliseconds))


_servers: list[ForkServer] = []
_may_fork = False
_opening = threading.Lock()


@contextmanager
def forks_allowed() -> Iterator[None]:
    """Let workers be copies meanwhile; what they are copies of starts with the first."""
    global _may_fork  # noqa: PLW0603 - one for each process, as its children are
    _may_fork = True
    try:
        yield
    finally:
        _may_fork = False
        while _servers:
            _servers.pop().close()


def lasting_environment() -> dict[str, str]:
    """Return this process's environment for what outlives the test which came first."""
    return {name: value for name, value in os.environ.items() if name != MARK}


def find_server() -> ForkServer | None:
    """Return the server of this process, started if it is not there yet; None without permission."""
    with _opening:
        if _may_fork and not _servers:
            _servers.append(ForkServer())
        return _servers[0] if _servers else None


def server_pids() -> set[int]:
    """Return the process ids of what is there to start copies."""
    return {server.pid for server in _servers}
