"""The supervisor of one process container: a program that starts it, keeps its limits and lets nothing of it live on.

It talks with the worker over one socket, one JSON object per packet: `pause`, `resume` and `stop` come in, `started`,
`paused`, `resumed` and at last `exit` go out. When the worker dies, however it dies, all of the container dies. It runs
in a session of its own, and on the standard library alone, so that it is there within a few hundredths of a second.
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

from workers.attempt.runtimes import process_tree

_PARENT_DEATH_SIGNAL, _CHILD_SUBREAPER, _NO_NEW_PRIVILEGES = 1, 36, 38
_LOOK_SECONDS = 0.05
_NOT_FOUND, _NOT_RUNNABLE, _KILLED = 127, 126, 137
_PACKET_BYTES = 4096
_OOM_SCORE = "500"
_NICENESS = 5


def main() -> None:
    """Run the container that the worker ordered; the arguments are two file numbers and the worker's process id."""
    control_number, order_number, worker_pid = map(int, sys.argv[1:])
    control = socket.socket(fileno=control_number)
    # The experiment must not hold the line on which its end is told.
    control.set_inheritable(False)
    with os.fdopen(order_number) as file:
        order = json.load(file)
    _prctl(_CHILD_SUBREAPER, 1)
    worker = os.pidfd_open(worker_pid)
    if os.getppid() == worker_pid:
        _Supervisor(control, order).run(worker, _make_alarm())


class _Supervisor:
    """One container, from its supervisor's side.

    Args:
        order: `argv`, `env`, `folder`, `limits` (by name of the resource limit), `memory_bytes`, `threads` (most of
            them) and `depth` (how many processes stand between this one and the experiment's own).
    """

    def __init__(self, control: socket.socket, order: dict[str, Any]) -> None:
        self._control = control
        self._order = order
        self._child = 0
        self._code: int | None = None
        self._verdict: dict[str, Any] = {}
        self._peak_bytes = 0
        self._kill_at = float("inf")

    def run(self, worker: int, alarm: int) -> None:
        """Start it and stay until all of it ended; `worker` and `alarm` become readable when worker or child end."""
        self._child = os.fork()
        if self._child == 0:
            _become(self._order)
        _forget_streams()
        self._tell(event="started")
        while self._code is None and not self._verdict and time.monotonic() < self._kill_at:
            sources: list[Any] = [self._control, worker, alarm]
            readable, _, _ = select.select(sources, [], [], self._next_look())
            if alarm in readable:
                os.read(alarm, _PACKET_BYTES)
            if worker in readable or (self._control in readable and not self._obey()):
                break
            self._look()
            self._reap()
        process_tree.kill_tree(os.getpid(), self._reap)
        code = _KILLED if self._verdict or self._code is None else self._code
        self._tell(event="exit", code=code, memory_peak_bytes=self._peak_bytes, **self._verdict)

    def _next_look(self) -> float:
        return max(0.0, min(_LOOK_SECONDS, self._kill_at - time.monotonic()))

    def _obey(self) -> bool:
        """Do what the worker says; return whether it is still there to say it."""
        try:
            packet = self._control.recv(_PACKET_BYTES)
        except OSError:
            packet = b""
        if packet:
            self._do(json.loads(packet))
        return bool(packet)

    def _do(self, order: dict[str, Any]) -> None:
        if order["do"] == "pause":
            process_tree.freeze_tree(os.getpid())
            self._tell(event="paused")
            return
        process_tree.thaw_tree(os.getpid())
        if order["do"] == "resume":
            self._tell(event="resumed")
        else:
            self._kill_at = time.monotonic() + order["grace_seconds"]
            with suppress(ProcessLookupError):
                os.kill(self._find_main(), signal.SIGTERM)

    def _find_main(self) -> int:
        pid = self._child
        for _ in range(self._order["depth"]):
            pid = min(process_tree.find_children(pid), default=pid)
        return pid

    def _look(self) -> None:
        """Keep the limits that the kernel does not keep here."""
        members = process_tree.read_members(os.getpid())
        resident = sum(member.resident_bytes for member in members)
        self._peak_bytes = max(self._peak_bytes, resident)
        if resident > self._order["memory_bytes"] and process_tree.weigh(members) > self._order["memory_bytes"]:
            self._verdict = {"is_out_of_memory": True}
        if sum(member.threads for member in members) > self._order["threads"]:
            self._verdict = {"error": "it had more processes and threads than its limit allows, and was killed"}

    def _reap(self) -> None:
        """Collect the dead; orphans of the container are this process's children too."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._child:
                    code = os.waitstatus_to_exitcode(status)
                    self._code = code if code >= 0 else 128 - code

    def _tell(self, **event: object) -> None:
        with suppress(OSError):
            self._control.send(json.dumps(event).encode())


def _become(order: dict[str, Any]) -> NoReturn:
    """Turn the forked child into the container's first process."""
    try:
        # Should the supervisor be killed, what it guards goes first.
        _prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        _prctl(_NO_NEW_PRIVILEGES, 1)
        os.setsid()
        os.chdir(order["folder"])
        os.nice(_NICENESS)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write(_OOM_SCORE)
        for name, value in order["limits"].items():
            _limit(getattr(resource, name), value)
        # Python ignores both, and what it starts would inherit that.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execvpe(order["argv"][0], order["argv"], order["env"])  # noqa: S606 - the words are a list
    except FileNotFoundError as error:
        _give_up(error, _NOT_FOUND)
    except BaseException as error:  # noqa: BLE001 - a forked child must not return into its parent's code
        _give_up(error, _NOT_RUNNABLE)


def _limit(number: int, value: int) -> None:
    _, hard = resource.getrlimit(number)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(number, (value, value))


def _give_up(error: BaseException, code: int) -> NoReturn:
    os.write(2, f"could not be started: {error}\n".encode())
    os._exit(code)


def _forget_streams() -> None:
    """Leave the output to the container: its reader sees the end when the last process of it ends."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)


def _make_alarm() -> int:
    """Return a file that becomes readable when a child ends."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
