"""One node: a real worker process with folders of its own, and a way of its own to each server."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil
from services.process import Process
from services.site import ROOT
from services.waiting import wait_until

from faults.history import History
from faults.proxy import Proxy
from faults.store_proxy import StoreProxy

_DRAIN: Final = timedelta(seconds=90)
_SLOW_SECONDS: Final = 0.3
_GUARD: Final = "workers.node.guard"


@dataclass(kw_only=True)
class Node:
    """A machine, as far as the site can tell.

    Attributes:
        name: as in the names of its folders and its worker.
        worker: its worker process.
        broker, registry, events: its ways there; `store`: its way there, when that is a server.
        lock: held by whoever breaks it, so that one fault at a time is done to it.
        is_wanted: whether its worker is to run; the keeper starts it again while it is.
    """

    name: str
    folder: Path
    worker: Process
    broker: Proxy
    registry: Proxy
    store: StoreProxy | None
    history: History
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_wanted: bool = False

    def start(self) -> None:
        """Start its worker."""
        if not self.worker.running:
            self.worker.start()
            self.history.add("worker", node=self.name, event="started", pid=self.worker.pid)
        self.is_wanted = True

    def kill(self) -> None:
        """Kill its worker, and nothing else of it."""
        self.is_wanted = False
        self.worker.kill()
        self.history.add("worker", node=self.name, event="killed")

    def drain(self) -> int | None:
        """Ask its worker to end, and return its exit code; None when it had to be killed."""
        self.is_wanted = False
        child = self.worker._child
        if child is None or not self.worker.running:
            return 0
        os.kill(child.pid, signal.SIGTERM)
        try:
            code = child.wait(timeout=_DRAIN.total_seconds())
        except Exception:  # noqa: BLE001 - subprocess.TimeoutExpired, whatever it had to say
            self.worker.kill()
            return None
        self.worker.kill()
        return code

    def guards(self) -> list[psutil.Process]:
        """Return the processes that guard its containers."""
        return [each for each in self.processes() if _GUARD in " ".join(_command(each))]

    def processes(self) -> Iterator[psutil.Process]:
        """Find every process that was started with its folders, however far it has detached itself."""
        state = f"{self.folder / 'state'}\0".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError, psutil.NoSuchProcess):
                    if state in (folder / "environ").read_bytes() or state in (folder / "cmdline").read_bytes():
                        yield psutil.Process(int(folder.name))

    def kill_all(self) -> None:
        """Kill every process of it, its guard too."""
        self.is_wanted = False
        self.worker.kill()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def cut(self, *ways: str) -> None:
        """Lose every packet on some ways: `broker`, `registry`, `store`."""
        for way in ways:
            proxy = getattr(self, way)
            if isinstance(proxy, StoreProxy):
                proxy.break_down("cut")
            elif proxy is not None:
                proxy.cut()

    def restore(self) -> None:
        """Mend every way."""
        for way in (self.broker, self.registry, self.store):
            if way is not None:
                way.restore()

    def reset(self) -> None:
        """End every connection at once."""
        self.broker.reset()
        self.registry.reset()

    def slow(self) -> None:
        """Make every way slow."""
        self.broker.delay(_SLOW_SECONDS)
        self.registry.delay(_SLOW_SECONDS)
        if self.store:
            self.store.break_down("slow")

    def close(self) -> None:
        """End everything of it."""
        self.restore()
        self.kill_all()
        for way in (self.broker, self.registry, self.store):
            if way is not None:
                way.close()

    def check(self) -> None:
        """Start its worker again where it ended by itself, and write that down."""
        if not self.is_wanted or self.worker.running or not self.lock.acquire(blocking=False):
            return
        try:
            child = self.worker._child
            code = child.returncode if child else None
            was_ready = "worker.ready" in self._since_start()
            self.history.add("worker", node=self.name, event="died" if was_ready else "not_started", code=code)
            self._mark_start()
            self.start()
        finally:
            self.lock.release()

    def wait_ready(self, within: timedelta = timedelta(seconds=120)) -> None:
        """Wait until its worker consumes."""
        wait_until(lambda: "worker.ready" in self._since_start(), what=f"{self.name} ready", within=within)

    _offset = 0

    def _mark_start(self) -> None:
        self._offset = self.worker.log.stat().st_size if self.worker.log.exists() else 0

    def _since_start(self) -> str:
        if not self.worker.log.exists():
            return ""
        with self.worker.log.open("rb") as log:
            log.seek(self._offset)
            return log.read().decode(errors="replace")


def make_worker(
    folder: Path, *, name: str, slots: int, environment: Mapping[str, str], app: str = "jobqueue"
) -> Process:
    """Return a worker that is not started yet and is not waited for: a node may come up while its servers are away."""
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO", "-c", str(slots)]
    return Process(
        name=name,
        command=[*command, "-n", f"{name}@faults"],
        log=folder / "worker.log",
        ready=lambda: True,
        environment={**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        is_copy=True,
    )


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return list(process.cmdline())
    return []
