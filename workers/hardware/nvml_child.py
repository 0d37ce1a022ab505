"""The process that asks the driver, as its parent sees it: questions with a time limit, and no waiting for its end."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

END_WITHIN: Final = timedelta(seconds=1)
_PIECE_BYTES: Final = 1 << 16
# Nothing that may be secret, and what the loader of libraries needs.
_VARIABLES: Final = ("PATH", "LANG", "LD_LIBRARY_PATH")


class NvmlChild:
    """One process that asks the driver, from its start on.

    Args:
        environ: where its variables are taken from.

    Raises:
        OSError: it could not be started.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        kept = {name: environ[name] for name in _VARIABLES if name in environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.hardware.nvml_probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        self._rest = b""

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def ask(self, *, within: timedelta) -> dict[str, Any]:
        """Return what it answers to one question.

        Raises:
            TimeoutError: it has not answered; the message says where it is.
            EOFError: it has ended; the message says how.
        """
        until = time.monotonic() + within.total_seconds()
        place = "its start"
        with suppress(BrokenPipeError):  # how it ended is told below
            os.write(self._stdin, b"\n")
        while True:
            line = self._read_line(until)
            if line is None:
                raise TimeoutError(f"not answered within {within.total_seconds():g} s at {place}")
            answer: dict[str, Any] = json.loads(line)
            if "at" not in answer:
                return answer
            place = answer["at"]

    def kill(self) -> None:
        """Tell it to end at once, and do not wait: in the kernel it may stay for ever."""
        self._process.kill()

    def close(self) -> None:
        """End it; one that does not end within a moment is left to itself."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_WITHIN.total_seconds())

    @property
    def _stdin(self) -> int:
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        return self._process.stdin.fileno()

    def _read_line(self, until: float) -> bytes | None:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        handle = self._process.stdout.fileno()
        readable = select.poll()
        readable.register(handle, select.POLLIN)
        while b"\n" not in self._rest:
            left_seconds = until - time.monotonic()
            if left_seconds <= 0 or not readable.poll(left_seconds * 1000):
                return None
            piece = os.read(handle, _PIECE_BYTES)
            if not piece:
                raise EOFError(self._tell_end())
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _tell_end(self) -> str:
        try:
            code = self._process.wait(END_WITHIN.total_seconds())
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with {code}"
