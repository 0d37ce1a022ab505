"""One process container, from the worker's side: its output and the conversation with its supervisor."""

import json
import os
import selectors
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from subprocess import Popen
from threading import Condition, Thread

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.base import Exit, Labels

_PACKET_BYTES = 4096
_PIECE_BYTES = 64 * 1024
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What leads to a container: the supervisor's process and socket, and the reading ends of its two streams."""

    supervisor: "Popen[bytes]"
    control: socket.socket
    streams: dict[str, int]
    scratch: Path


class ProcessContainer:
    """A `Container` that is a supervised process; its methods may be called from any thread."""

    def __init__(self, labels: Labels, lines: Lines) -> None:
        self.labels = labels
        self._lines = lines
        self._changed = Condition()
        self._heard: Counter[str] = Counter()
        self._exit: Exit | None = None
        self._is_removed = False
        self._refused: tuple[str, bytes] | None = None
        Thread(target=self._listen, name="process-container", daemon=True).start()

    def follow(self, sink: Callable[[str, bytes], None]) -> None:
        """Read both pipes as they fill; a container that prints faster than `sink` takes it has to wait."""
        with self._changed:
            if self._is_removed:
                return
            # Of its own, because `remove` in another thread closes the others.
            streams = {os.dup(number): stream for stream, number in self._lines.streams.items()}
        try:
            self._pass_on(streams, sink)
        finally:
            for number in streams:
                os.close(number)

    def wait(self, timeout: timedelta) -> Exit | None:
        """Wait for the supervisor's last word, which it says when no process is left."""
        with self._changed:
            self._changed.wait_for(self._is_over, timeout.total_seconds())
            if self._exit is None and self._heard["gone"]:
                raise RuntimeFailure("the supervisor of the process container died", hint="what it ran died with it")
            return self._exit

    def stop(self, grace: timedelta) -> None:
        """Let the supervisor thaw it and send SIGTERM, and kill what is left after `grace`."""
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
        self._send(do="stop", grace_seconds=0)
        self._await(lambda: bool(self._heard["gone"]), _ANSWER_SECONDS)
        with self._changed:
            if self._is_removed:
                return
            self._is_removed = True
        for number in self._lines.streams.values():
            os.close(number)
        self._lines.control.close()
        shutil.rmtree(self._lines.scratch, ignore_errors=True)

    def _pass_on(self, streams: Mapping[int, str], sink: Callable[[str, bytes], None]) -> None:
        if self._refused is not None:
            sink(*self._refused)
            self._refused = None
        with selectors.DefaultSelector() as selector:
            for number in streams:
                selector.register(number, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    piece = os.read(key.fd, _PIECE_BYTES)
                    if not piece:
                        selector.unregister(key.fd)
                        continue
                    # Kept until it was taken: what is read from a pipe cannot be read again.
                    self._refused = (streams[key.fd], piece)
                    sink(*self._refused)
                    self._refused = None

    def _ask(self, word: str, answer: str) -> None:
        with self._changed:
            heard = self._heard[answer]
        self._send(do=word)
        self._await(lambda: self._is_over() or self._heard[answer] > heard, _ANSWER_SECONDS)

    def _send(self, **order: object) -> None:
        # One that is gone has killed what it ran: there is nobody to tell.
        with suppress(OSError):
            self._lines.control.send(json.dumps(order).encode())

    def _await(self, is_so: Callable[[], bool], seconds: float) -> None:
        with self._changed:
            if not self._changed.wait_for(is_so, seconds):
                raise RuntimeFailure(
                    f"the supervisor of the process container did not answer within {seconds:g} s",
                    hint="a process of it may hang in the kernel: restart the node if it stays",
                )

    def _is_over(self) -> bool:
        return self._exit is not None or bool(self._heard["gone"])

    def _listen(self) -> None:
        while packet := self._receive():
            said = json.loads(packet)
            with self._changed:
                event = said.pop("event")
                if event == "exit":
                    self._exit = Exit(**said)
                self._heard[event] += 1
                self._changed.notify_all()
        self._lines.supervisor.wait()
        with self._changed:
            self._heard["gone"] += 1
            self._changed.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._lines.control.recv(_PACKET_BYTES)
        except OSError:
            return b""
