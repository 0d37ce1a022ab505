"""One container of an engine: followed, waited for, frozen, stopped and removed."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from threading import Lock
from typing import TYPE_CHECKING, Any

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.base import Exit, Labels
from workers.attempt.runtimes.docker_output import Output, Sink
from workers.attempt.runtimes.engine import Engine, Gone
from workers.attempt.runtimes.engine_streams import Attachment, ExitWatch
from workers.attempt.runtimes.memory import MemoryUse, find_members, read_memory_use

if TYPE_CHECKING:
    from docker import APIClient

_ANSWER_SECONDS = 30
_LEAVE_SECONDS = 30.0
_POLL_SECONDS = 0.02
_FREEZE_SECONDS = 2.0
_KILLED = 137
_KILLS = ("9", "KILL", "SIGKILL")
_LIFETIME = ("StartedAt", "FinishedAt")
# So long after an end a busy engine has told of it.
_TOLD_SECONDS = 10


class DockerContainer:
    """A `Container` on an engine; its methods may be called from any thread, `follow` from one at a time.

    Args:
        attached, watch: opened before the start; without them it is a container of an earlier worker.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        identity: str,
        labels: Labels,
        attached: Attachment | None = None,
        watch: ExitWatch | None = None,
    ) -> None:
        self.labels = labels
        self._engine = engine
        self._identity = identity
        self._output = Output(engine, identity, attached=attached, watch=watch)
        self._watch = watch
        self._lock = Lock()
        self._use = MemoryUse()
        self._pid = 0

    def follow(self, sink: Sink) -> None:
        """Pass the output on, over restarts of the engine; while that is away it waits, up to a few minutes."""
        self._output.follow(sink)

    def wait(self, timeout: timedelta) -> Exit | None:
        """Wait for the engine's word, then ask it how the container ended; a restarted engine is asked again."""
        if not self._has_ended(timeout.total_seconds()):
            self._read_memory_use()
            return None
        return self._read_exit(self._inspect())

    def stop(self, grace: timedelta) -> None:
        """Thaw it, let the engine send SIGTERM and later SIGKILL, and see that it is gone."""
        with suppress(Gone):
            if grace > timedelta(0):
                self.resume()
                with self._engine.client("stop a container", timeout_seconds=_ANSWER_SECONDS) as client:
                    client.stop(self._identity, timeout=round(grace.total_seconds()))
            else:
                self._kill()
            self._await("stop", lambda state: not state["Running"])

    def pause(self) -> None:
        """Freeze it; what has ended computes nothing, so that is fine too."""
        deadline = time.monotonic() + _FREEZE_SECONDS
        while True:
            try:
                self._change("freeze", lambda client: client.pause(self._identity), lambda state: bool(state["Paused"]))
            except Gone:
                raise
            except RuntimeFailure:
                # What is very busy cannot always be frozen at once.
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def resume(self) -> None:
        """Thaw it."""
        self._change("thaw", lambda client: client.unpause(self._identity), lambda state: not state["Paused"])

    def remove(self) -> None:
        """Kill and delete it with its volumes; a removal that has begun already is waited for."""
        with suppress(Gone):
            with suppress(RuntimeFailure):
                self._kill_frozen()
            try:
                self._remove()
            except Gone:
                raise
            except RuntimeFailure:
                self._await("be removed", lambda state: state["Status"] != "removing")
                self._remove()
        self._output.close()
        with self._lock:
            self._drop_watch()

    def _kill(self) -> None:
        self._kill_frozen()
        # An error may say that it is dead by now: whoever calls asks for that next.
        with suppress(RuntimeFailure), self._engine.client("kill a container") as client:
            client.kill(self._identity, "SIGKILL")

    def _kill_frozen(self) -> None:
        """Kill each process of what is frozen, where this user may.

        An engine sends its signal to the main process alone, and older kernels let frozen ones die only when they are
        thawed: until the main one is dead its children would go on.
        """
        state = self._inspect()["State"]
        for pid in find_members(int(state["Pid"]), identity=self._identity) if state["Paused"] else ():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _remove(self) -> None:
        with self._engine.client("remove a container") as client:
            client.remove_container(self._identity, force=True, v=True)

    def _change(
        self, doing: str, change: Callable[["APIClient"], None], is_done: Callable[[Mapping[str, Any]], bool]
    ) -> None:
        try:
            with self._engine.client(f"{doing} a container", timeout_seconds=_ANSWER_SECONDS) as client:
                change(client)
        except Gone:
            raise
        except RuntimeFailure:
            # The engine calls it an error when there is nothing to do, in words that differ from version to version.
            state = self._inspect()["State"]
            if state["Running"] and not is_done(state):
                raise

    def _has_ended(self, seconds: float) -> bool:
        try:
            return self._open_watch().wait(seconds)
        except Gone:
            raise
        except RuntimeFailure:
            # An engine that was restarted meanwhile has not lost the container: it is asked once more.
            with self._lock:
                self._drop_watch()
            return self._open_watch().wait(seconds)

    def _open_watch(self) -> ExitWatch:
        with self._lock:
            if self._watch is None:
                self._watch = ExitWatch(self._engine, self._identity, "not-running")
            return self._watch

    def _drop_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _read_memory_use(self) -> None:
        self._pid = self._pid or int(self._inspect()["State"]["Pid"])
        self._use = read_memory_use(self._pid, identity=self._identity) or self._use

    def _inspect(self) -> dict[str, Any]:
        with self._engine.client("inspect a container", timeout_seconds=_ANSWER_SECONDS) as client:
            seen: dict[str, Any] = client.inspect_container(self._identity)
            return seen

    def _read_exit(self, seen: Mapping[str, Any]) -> Exit | None:
        state = seen["State"]
        if state["Running"]:
            return None
        code = int(state["ExitCode"])
        if state["Status"] == "created" and code == 0:
            raise RuntimeFailure("the container was made but never started", hint="remove it and start another")
        # A child that was killed for memory while its parent went on and succeeded is the experiment's own affair.
        is_out_of_memory = code != 0 and (bool(state["OOMKilled"]) or self._use.kills > 0)
        limit = int(seen["HostConfig"]["Memory"])
        return Exit(
            code=code,
            is_out_of_memory=is_out_of_memory,
            memory_peak_bytes=limit if is_out_of_memory else self._use.peak_bytes,
            error=str(state["Error"]),
            is_from_outside=code == _KILLED and not is_out_of_memory and self._was_killed(state),
        )

    def _was_killed(self, state: Mapping[str, Any]) -> bool:
        """Tell whether somebody asked the engine to kill it, or may have: one that was restarted does not remember."""
        seconds = [int(datetime.fromisoformat(f"{state[name][:19]}+00:00").timestamp()) for name in _LIFETIME]
        filters = {"container": self._identity, "event": ["kill", "die"]}
        with self._engine.client("ask what became of a container", timeout_seconds=_ANSWER_SECONDS) as client:
            # Not later than now, or the engine waits for what is still to come.
            until = min(seconds[1] + _TOLD_SECONDS, int(time.time()) + 1)
            events = list(client.events(since=seconds[0], until=until, filters=filters, decode=True))
        is_remembered = any(event["Action"] == "die" for event in events)
        return not is_remembered or any(event["Actor"]["Attributes"].get("signal") in _KILLS for event in events)

    def _await(self, doing: str, is_so: Callable[[Mapping[str, Any]], bool]) -> None:
        deadline = time.monotonic() + _LEAVE_SECONDS
        while not is_so(self._inspect()["State"]):
            if time.monotonic() > deadline:
                raise RuntimeFailure(
                    f"the container did not {doing} within {_LEAVE_SECONDS:g} s",
                    hint="a process of it may hang in the kernel: restart the node if it stays",
                )
            time.sleep(_POLL_SECONDS)
