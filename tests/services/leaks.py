"""What a test may leave behind: threads, processes and containers that were not there before."""

import os
import threading
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from multiprocessing import resource_tracker
from pathlib import Path

import psutil

from services.engine import Engine
from services.forking import MARK, server_pids
from workers.attempt.runtimes.process_tree import find_children

_LABEL = "jobqueue.experiment"


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What is there now and was not before.

    Attributes:
        threads: Those which keep the interpreter from ending.
        processes: Children of this process, and whatever carries the test's mark.
        containers: The ids of those that run an experiment.
    """

    threads: tuple[threading.Thread, ...] = ()
    processes: tuple[psutil.Process, ...] = ()
    containers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.threads or self.processes or self.containers)

    def __str__(self) -> str:
        lines = [
            *(f"thread {thread.name}" for thread in self.threads),
            *(f"process {process.pid}: {_command(process)}" for process in self.processes),
            *(f"container {container}" for container in self.containers),
        ]
        return "\n".join(lines)


def watch(*, mark: str, known: Callable[[], AbstractSet[int]], engine: Engine | None) -> Callable[[], Leaks]:
    """Remember what is there, and return what finds out what came since.

    Args:
        mark: What processes of this test carry in their environment as MARK; "" to skip those.
        known: The process ids of the servers that stay for other tests.
        engine: Where to look for containers.
    """
    threads = set(_threads())
    processes = set(psutil.pids())
    containers = set(_containers(engine))

    def find() -> Leaks:
        ours = known() | processes
        found = [*_children(), *(_marked(mark) if mark else ())]
        return Leaks(
            threads=tuple(thread for thread in _threads() if thread not in threads),
            processes=tuple({each for each in found if not _belongs(each, ours)}),
            containers=tuple(each for each in _containers(engine) if each not in containers),
        )

    return find


def remove(leaks: Leaks, engine: Engine | None) -> None:
    """End the processes and containers, so that the next test does not suffer from them."""
    for process in leaks.processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    if engine is not None:
        for container in leaks.containers:
            engine.client.api.remove_container(container, force=True)


def _threads() -> Iterable[threading.Thread]:
    return (thread for thread in threading.enumerate() if not thread.daemon)


def _children() -> Iterable[psutil.Process]:
    # These are kept until the end: the interpreter's own, and what starts workers.
    kept = {getattr(resource_tracker._resource_tracker, "_pid", None), *server_pids()}
    for pid in chain.from_iterable(find_children(parent) for parent in (os.getpid(), *server_pids())):
        with suppress(psutil.NoSuchProcess):
            child = psutil.Process(pid)
            if pid not in kept and _is_alive(child):
                yield child


def _marked(mark: str) -> Iterable[psutil.Process]:
    """Find what the test started even where it detached itself from its parent."""
    entry = f"{MARK}={mark}\0".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError, psutil.NoSuchProcess):
                if entry in (folder / "environ").read_bytes():
                    yield psutil.Process(int(folder.name))


def _belongs(process: psutil.Process, ours: AbstractSet[int]) -> bool:
    """Tell whether it is one of `ours`, or was started by one that is not this interpreter."""
    strangers = {os.getpid(), *server_pids(), *(parent.pid for parent in psutil.Process().parents())}
    with suppress(psutil.NoSuchProcess):
        family = {process.pid, *(parent.pid for parent in process.parents())}
        return not ours.isdisjoint(family - strangers)
    return True


def _containers(engine: Engine | None) -> Iterable[str]:
    if engine is None or not engine.process.running:
        return []
    found = engine.client.api.containers(all=True, filters={"label": _LABEL})
    return [container["Id"] for container in found]


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "ended meanwhile"
