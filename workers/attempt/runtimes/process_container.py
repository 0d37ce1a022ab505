"""One process container, from a worker's side: its output and the conversation with its supervisor.

All that leads to it lies in its folder, so that a worker which did not start it can go on with it.
"""

import json
import os
import select
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from subprocess import Popen
from threading import Condition, Thread

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.base import Exit, Labels
from workers.attempt.runtimes.process_spool import STREAMS, Spool

_PACKET_BYTES = 4096
_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 1.0
_BACKLOG = 16


class ProcessContainer:
    """A `Container` that is a supervised process; its methods may be called from any thread, `follow` from one.

    Args:
        folder: of the container.
        supervisor: its process, for the worker that started it; it is this worker's to bury.
    """

    def __init__(self, labels: Labels, folder: Path, *, supervisor: "Popen[bytes] | None" = None) -> None:
        self.labels = labels
        self._folder = folder
        self._supervisor = supervisor
        self._changed = Condition()
        self._heard: Counter[str] = Counter()
        self._exit: Exit | None = None
        self._is_removed = False
        self._is_attending = False
        self._control: socket.socket | None = None
        self._passed_bytes: dict[str, int | None] = dict.fromkeys(STREAMS)

    def attend(self) -> None:
        """Tell the supervisor that a worker is here; without one for long, it ends the container."""
        if not self._is_attending:
            self._is_attending = True
            self._send(do="attend")

    def follow(self, sink: Callable[[str, bytes], None]) -> None:
        """Pass on what is kept, then what comes; a container that prints faster than `sink` takes it has to wait."""
        spools: dict[str, Spool] = {}
        try:
            with self._changed:
                if self._is_removed:
                    return
                for stream, passed in self._passed_bytes.items():
                    spools[stream] = Spool(self._folder, stream, passed_bytes=passed)
            _pass_on(spools, sink)
        except OSError as error:
            raise RuntimeFailure(f"the output of the process container cannot be read: {error}") from error
        finally:
            for stream, spool in spools.items():
                self._passed_bytes[stream] = spool.passed_bytes
                spool.close()

    def wait(self, timeout: timedelta) -> Exit | None:
        """Wait for the supervisor's last word, which it says when no process is left."""
        self.attend()
        with self._changed:
            self._changed.wait_for(self._is_over, timeout.total_seconds())
            if self._exit is None and self._heard["gone"]:
                raise RuntimeFailure("the supervisor of the process container died", hint="what it ran died with it")
            return self._exit

    def stop(self, grace: timedelta) -> None:
        """Let the supervisor thaw it and send SIGTERM, and kill what is left after `grace`; at once when it is zero."""
        self._send(do="stop", grace_seconds=grace.total_seconds())
        self._await(self._is_over, grace.total_seconds() + _ANSWER_SECONDS)

    def pause(self) -> None:
        """Freeze it; an ended one computes nothing."""
        self._ask("pause", "paused")

    def resume(self) -> None:
        """Thaw it."""
        self._ask("resume", "resumed")

    def remove(self) -> None:
        """Kill all of it at once, and delete what it had for itself."""
        self._send(do="leave")
        self._await(lambda: bool(self._heard["gone"]), _ANSWER_SECONDS)
        with self._changed:
            if self._is_removed:
                return
            self._is_removed = True
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> None:
        """Begin the conversation; a supervisor that is gone is noted."""
        with self._changed:
            if self._control is None and not self._is_removed:
                self._control = _connect(self._folder)
                Thread(target=self._listen, args=(self._control,), name="process-container", daemon=True).start()

    def _ask(self, word: str, answer: str) -> None:
        with self._changed:
            heard = self._heard[answer]
        self._send(do=word)
        self._await(lambda: self._is_over() or self._heard[answer] > heard, _ANSWER_SECONDS)

    def _send(self, **order: object) -> None:
        self._connect()
        # One that is gone has killed what it ran: there is nobody to tell.
        with self._changed, suppress(OSError):
            if self._control is not None:
                self._control.send(json.dumps(order).encode())

    def _await(self, is_so: Callable[[], bool], seconds: float) -> None:
        with self._changed:
            if not self._changed.wait_for(is_so, seconds):
                raise RuntimeFailure(
                    f"the supervisor of the process container did not answer within {seconds:g} s",
                    hint="a process of it may hang in the kernel: restart the node if it stays",
                )

    def _is_over(self) -> bool:
        return self._exit is not None or bool(self._heard["gone"])

    def _listen(self, control: socket.socket) -> None:
        while packet := _receive(control):
            said = json.loads(packet)
            with self._changed:
                event = said.pop("event")
                if event == "exit":
                    self._exit = Exit(**said)
                self._heard[event] += 1
                self._changed.notify_all()
        if self._supervisor is not None:
            self._supervisor.wait()
        with self._changed:
            control.close()
            self._heard["gone"] += 1
            self._changed.notify_all()


def open_listener(folder: Path) -> socket.socket:
    """Return the socket that a container's supervisor listens on."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _Place(folder) as place:
            listener.bind(place)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _connect(folder: Path) -> socket.socket:
    """Return a connection to the supervisor, or a socket that is at its end because there is none."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with suppress(OSError), _Place(folder) as place:
        control.connect(place)
    return control


class _Place:
    """The address of a container's socket, short enough however deep its folder lies."""

    def __init__(self, folder: Path) -> None:
        self._number = os.open(folder, os.O_PATH | os.O_DIRECTORY)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._number}/control"

    def __exit__(self, *_: object) -> None:
        os.close(self._number)


def _receive(control: socket.socket) -> bytes:
    try:
        return control.recv(_PACKET_BYTES)
    except OSError:
        return b""


def _pass_on(spools: dict[str, Spool], sink: Callable[[str, bytes], None]) -> None:
    left = dict(spools)
    poll = select.poll()
    for spool in left.values():
        poll.register(spool.pipe, select.POLLIN)
    while left:
        has_come = False
        for stream, spool in tuple(left.items()):
            piece = spool.peek()
            if piece:
                sink(stream, piece)
                spool.advance(piece)
                has_come = True
            elif piece is not None:
                poll.unregister(spool.pipe)
                del left[stream]
        if left and not has_come:
            # A pipe whose writers have all gone before it was opened here never wakes: it is asked again.
            poll.poll(_POLL_SECONDS * 1000)
