"""What the tests of container runtimes share: commands, what a pretended one answers, and a reader of output."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

import pytest

from workers.attempt.runtimes.base import Container, Exit
from workers.attempt.runtimes.fake import Script

NODE = "node-of-the-contract"
LONG = timedelta(seconds=30)
AT_ONCE = timedelta(0)
MIB = 2**20

EXITS = {
    ("true",): Exit(code=0),
    ("sh", "-c", "exit 3"): Exit(code=3),
    ("sh", "-c", "exit 137"): Exit(code=137),
    ("sh", "-c", "kill -SEGV $$"): Exit(code=139),
    ("sh", "-c", "no-such-command"): Exit(code=127),
    ("no-such-command",): Exit(code=127),
    ("/etc/passwd",): Exit(code=126),
}
TALK = ("sh", "-c", "echo one; echo two >&2; echo three; echo four >&2")
SLEEP = ("sleep", "1000")
STUBBORN = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
POLITE = ("sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done")

BOMB = """
import os, time
count = 0
for _ in range(500):
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        time.sleep(1000)
    count += 1
print(count)
"""

PRETENCE = MappingProxyType(
    {
        **{command: Script(exit=how) for command, how in EXITS.items()},
        TALK: Script(output=[("stdout", b"one\nthree\n"), ("stderr", b"two\nfour\n")]),
        SLEEP: Script(is_held=True),
        STUBBORN: Script(output=[("stdout", b"ready\n")], is_held=True, ignores_terminate=True),
        POLITE: Script(output=[("stdout", b"ready\n")], is_held=True, terminated=Exit(code=5), last_words=b"bye\n"),
    }
)

ALL = ("docker", "process", "fake")
REAL = ("docker", "process")

StartContainer = Callable[..., Container]

real = pytest.mark.parametrize("runtime", REAL, indirect=True)


class Reader:
    """Follows a container in a thread and keeps what it printed, by stream."""

    def __init__(self, container: Container) -> None:
        self.printed = {"stdout": bytearray(), "stderr": bytearray()}
        self.largest = 0
        self._container = container
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def text(self, stream: str = "stdout") -> str:
        """Return what one stream printed so far."""
        return bytes(self.printed[stream]).decode()

    def join(self) -> "Reader":
        """Wait for the end of the output."""
        self._thread.join(LONG.total_seconds())
        assert not self._thread.is_alive()
        return self

    def _read(self) -> None:
        self._container.follow(self._keep)

    def _keep(self, stream: str, piece: bytes) -> None:
        self.printed[stream] += piece
        self.largest = max(self.largest, len(piece))


def run(container: Container) -> tuple[Exit, Reader]:
    """Follow a container to its end."""
    reader = Reader(container).join()
    how = container.wait(LONG)
    assert how is not None
    return how, reader


def beat() -> str:
    """Return a shell's loop that writes to a file as long as it lives."""
    return "while :; do echo x >> /workspace/beat; sleep 0.02; done"


def is_still(file: Path) -> bool:
    """Tell whether nothing writes to a file that is written to every 0.02 s."""
    before = file.stat().st_size
    time.sleep(0.3)
    return file.stat().st_size == before
