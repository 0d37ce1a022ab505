"""The supervisor of one process container: a program that starts it, keeps its limits and lets nothing of it live on.

Others talk with it over connections to one socket, one JSON object per packet: `attend` (which a worker says first),
`pause`, `resume`, `stop` and `leave` come in; `paused` and `resumed` go back to who asked, and the `exit` to everybody,
now and later. The container outlives its worker: the next one connects and goes on. One that no worker has attended to
for long ends. It runs in a session of its own, and on the standard library alone, so that it is there at once.
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
_IDLE_SECONDS = 1.0
_NOT_FOUND, _NOT_RUNNABLE, _KILLED = 127, 126, 137
_PACKET_BYTES = 4096
_OOM_SCORE = "500"
_NICENESS = 5
_UMASK = 0o022


def main() -> None:
    """Run the container that the worker ordered.

    The arguments are the numbers of open files: the listening socket, the order, and the reading ends of the two
    streams, which are only kept open, so that the container can write while no worker reads.
    """
    listener_number, order_number, *readers = map(int, sys.argv[1:])
    listener = socket.socket(fileno=listener_number)
    # The experiment must not hold the line on which its end is told, nor read what it printed.
    for number in (listener_number, *readers):
        os.set_inheritable(number, False)
    with os.fdopen(order_number) as file:
        order = json.load(file)
    _prctl(_CHILD_SUBREAPER, 1)
    _Supervisor(listener, order, pipe=readers[0]).run(_make_alarm())


class _Supervisor:
    """One container, from its supervisor's side.

    Args:
        listener: where workers connect.
        order: `argv`, `env`, `folder`, `limits` (by name of the resource limit), `memory_bytes`, `threads` (most of
            them), `depth` (how many processes stand between this one and the experiment's own), `cores` (those that it
            may use) and `patience_seconds` (how long it may be without a worker).
        pipe: the number of one of its pipes, which tells whether its folder is still there.
    """

    def __init__(self, listener: socket.socket, order: dict[str, Any], *, pipe: int) -> None:
        self._listener = listener
        self._pipe = pipe
        self._order = order
        self._callers: list[socket.socket] = []
        self._workers: set[socket.socket] = set()
        self._heard_at = time.monotonic()
        self._child = 0
        self._code: int | None = None
        self._verdict: dict[str, Any] = {}
        self._peak_bytes = 0
        self._machine_kills = process_tree.count_machine_kills()
        self._kill_at = float("inf")
        self._is_told_to_leave = False

    def run(self, alarm: int) -> None:
        """Start it, stay until all of it ended, and until its end was heard; `alarm` is readable when a child ends."""
        self._child = os.fork()
        if self._child == 0:
            _become(self._order)
        _forget_streams()
        while self._is_to_go_on():
            self._hear(self._next_look(), alarm)
            self._look()
            self._reap()
        process_tree.kill_tree(os.getpid(), self._reap)
        ended = {"event": "exit", "memory_peak_bytes": self._peak_bytes, **self._judge(), **self._verdict}
        for caller in self._callers:
            _tell(caller, ended)
        while not self._is_told_to_leave and not self._is_forgotten():
            self._hear(_IDLE_SECONDS, alarm, greeting=ended)

    def _judge(self) -> dict[str, Any]:
        if self._verdict or self._code is None:
            return {"code": _KILLED}
        # It may have killed itself; where the machine has killed something for memory, that was the likelier victim.
        is_from_outside = self._code == _KILLED and process_tree.count_machine_kills() > self._machine_kills
        return {"code": self._code, "is_from_outside": is_from_outside}

    def _is_to_go_on(self) -> bool:
        is_over = self._code is not None or self._verdict or time.monotonic() >= self._kill_at
        return not (is_over or self._is_told_to_leave or self._is_forgotten())

    def _is_forgotten(self) -> bool:
        if self._workers:
            self._heard_at = time.monotonic()
            return False
        # Without its folder nobody finds it any more.
        is_hidden = os.fstat(self._pipe).st_nlink == 0
        return is_hidden or time.monotonic() - self._heard_at >= float(self._order["patience_seconds"])

    def _next_look(self) -> float:
        return max(0.0, min(_LOOK_SECONDS, self._kill_at - time.monotonic()))

    def _hear(self, seconds: float, alarm: int, *, greeting: dict[str, Any] | None = None) -> None:
        """Wait for what callers say; each new one is told `greeting`."""
        sources: list[Any] = [alarm, self._listener, *self._callers]
        readable, _, _ = select.select(sources, [], [], seconds)
        if alarm in readable:
            os.read(alarm, _PACKET_BYTES)
        for caller in self._callers[:]:
            if caller in readable and not self._obey(caller):
                self._callers.remove(caller)
                self._workers.discard(caller)
                caller.close()
        if self._listener in readable:
            caller, _ = self._listener.accept()
            self._callers.append(caller)
            if greeting:
                _tell(caller, greeting)

    def _obey(self, caller: socket.socket) -> bool:
        """Do what a caller says; return whether it is still there to say it."""
        try:
            packet = caller.recv(_PACKET_BYTES)
        except OSError:
            packet = b""
        if packet:
            self._do(json.loads(packet), caller)
        return bool(packet)

    def _do(self, order: dict[str, Any], caller: socket.socket) -> None:
        match order["do"]:
            case "attend":
                self._workers.add(caller)
            case "leave":
                self._is_told_to_leave = True
            case "pause":
                process_tree.freeze_tree(os.getpid())
                _tell(caller, {"event": "paused"})
            case "resume":
                process_tree.thaw_tree(os.getpid())
                _tell(caller, {"event": "resumed"})
            case "stop" if self._code is None:
                self._kill_at = time.monotonic() + order["grace_seconds"]
                if order["grace_seconds"]:
                    process_tree.thaw_tree(os.getpid())
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
        kept, limit = process_tree.weigh_files(self._find_main()), self._order["memory_bytes"]
        self._peak_bytes = max(self._peak_bytes, resident)
        if resident + kept > limit and process_tree.weigh(members, kept) > limit:
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


def _tell(caller: socket.socket, event: dict[str, Any]) -> None:
    # A caller that is stopped must not stop the container's supervisor.
    with suppress(OSError):
        caller.send(json.dumps(event).encode(), socket.MSG_DONTWAIT)


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
        # A core may have gone offline meanwhile.
        with suppress(OSError):
            os.sched_setaffinity(0, order["cores"])
        _begin_anew()
        os.execvpe(order["argv"][0], order["argv"], order["env"])  # noqa: S606 - the words are a list
    except FileNotFoundError as error:
        _give_up(error, _NOT_FOUND)
    except BaseException as error:  # noqa: BLE001 - a forked child must not return into its parent's code
        _give_up(error, _NOT_RUNNABLE)


def _begin_anew() -> None:
    """Undo what it would inherit of a worker that a shell has put into the background, say, and of Python itself."""
    os.umask(_UMASK)
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


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
