"""A server's process: started in a session of its own, waited for, stopped by its id."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Self

import psutil

from services.forking import Child, find_server, lasting_environment
from services.waiting import wait_until

# First, because packages in a virtual environment bring programs of these names too.
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

_START = timedelta(seconds=120)
_STOP = timedelta(seconds=60)
# Ends the session when whoever started it goes without a word: its end of the pipe closes. Debian's shell takes the
# signal before `--` in these words only.
_LIFELINE = 'read -r farewell || kill -s TERM -- -"$0" 2>/dev/null'


class MissingProgramError(Exception):
    """A program that a server needs is not installed; the message says how to get it."""


class ServerFailedError(Exception):
    """A server ended or stayed silent instead of getting ready; the message ends with its log."""


def find_program(name: str, *, package: str) -> str:
    """Return the path of a program of the system, else of PATH.

    Raises:
        MissingProgramError: It is not installed.
    """
    path = os.pathsep.join([SYSTEM_PATH, os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=path)
    if found is None:
        raise MissingProgramError(f"{name} is not installed: run `make test` as root, or apt-get install {package}")
    return found


class Process:
    """One server process, which can be stopped, killed, paused and started again as it was.

    Attributes:
        name: What messages call it.
        log: The file with all it printed, over every start.

    One that `is_copy` is started by a fork server where there may be one: its `command` is that of a Python module.
    """

    def __init__(
        self,
        *,
        name: str,
        command: Sequence[str],
        log: Path,
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] = lambda: None,
        is_copy: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._ready = ready
        self._environment = dict(environment or {})
        self._prepare = prepare
        self._is_copy = is_copy
        self._child: Child | None = None
        self._lifeline: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the latest start."""
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._child.pid

    @property
    def pids(self) -> set[int]:
        """Every child process that this one costs, while it runs."""
        return {child.pid for child in (self._child, self._lifeline) if child is not None}

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start it and return when it is ready.

        Raises:
            ServerFailedError: It ended, or was not ready in time.
        """
        if self.running:
            raise RuntimeError(f"{self.name} runs already, as process {self.pid}")
        self._forget()
        self._prepare()
        self._spawn()
        try:
            wait_until(self._ready_or_ended, what=f"{self.name} ready", within=_START)
        except TimeoutError as error:
            self.kill()
            raise ServerFailedError(f"{error}\n{self.log_tail()}") from error
        if not self.running:
            self._forget()
            raise ServerFailedError(f"{self.name} ended at its start\n{self.log_tail()}")

    def stop(self) -> None:
        """Ask it to end, wait for that, and kill what is left of its session."""
        if self.running:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                wait_until(lambda: not self.running, what="", within=_STOP)
        self.kill()

    def kill(self) -> None:
        """End it and its session at once, as a crash does."""
        if self._child is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._forget()

    def restart(self) -> None:
        """Stop it where it runs, and start it with the same folder and port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers once this returns."""
        self._signal(signal.SIGSTOP)
        wait_until(self._is_frozen, what=f"{self.name} frozen")

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of what it printed, under a heading."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([f"--- {self.name}: {self.log}", *text.splitlines()[-lines:]])

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it at once: nobody needs its folder any more."""
        self.kill()

    def _spawn(self) -> None:
        environment = {**lasting_environment(), **self._environment}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        server = find_server() if self._is_copy else None
        if server:
            self._child = server.start(self._command[2:], environment=environment, log=self.log)
        else:
            self._child = self._run(environment)
        self._lifeline = subprocess.Popen(
            ["/bin/sh", "-c", _LIFELINE, str(self._child.pid)],
            stdin=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )

    def _run(self, environment: Mapping[str, str]) -> Child:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _is_frozen(self) -> bool:
        """Tell whether each of its threads has stopped, which takes them a moment on a busy machine."""
        threads = psutil.Process(self.pid).threads()
        states = (Path(f"/proc/{self.pid}/task/{thread.id}/stat").read_text() for thread in threads)
        return all(state.rpartition(")")[2].split()[0] == "T" for state in states)

    def _ready_or_ended(self) -> bool:
        return not self.running or self._ready()

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            os.kill(self.pid, number)

    def _forget(self) -> None:
        if self._lifeline is not None:
            self._lifeline.communicate(b"farewell\n")
            self._lifeline = None
