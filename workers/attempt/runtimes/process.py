"""Experiments as confined processes, for machines without a container engine: weaker than a container, and says so."""

import fcntl
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from jobqueue.errors import InvalidSetting, RuntimeFailure
from workers.attempt.runtimes.base import Container, Labels, Plan
from workers.attempt.runtimes.hardening import make_name, run_as
from workers.attempt.runtimes.process_container import ProcessContainer, open_listener
from workers.attempt.runtimes.process_spool import STREAMS, pipe_path
from workers.attempt.runtimes.process_tree import count_threads_of
from workers.attempt.runtimes.sandbox import (
    FILTER,
    OPTIONS,
    Start,
    find_obstacle,
    make_bare_start,
    make_confined_start,
)
from workers.attempt.runtimes.syscalls import make_filter
from workers.attempt.runtimes.view import is_shown_whole

_log = logging.getLogger(__name__)

_OPEN_FILES = 4096
# Behind the supervisor's own measuring: a process that asks for far more than the limit gets an error at once.
_DATA_FACTOR = 4
# The address space of a thread's stack counts too, though little of it is ever in use.
_STACK_BYTES = 8 * 2**20
_PIPE_BYTES = 2**20
# A worker that has not come back by then is not awaited any longer.
_PATIENCE_SECONDS = 3600.0
_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from workers.attempt.runtimes.shim import main; main()"
_PACKAGES = Path(__file__).parents[3]
_LABELS = "labels.json"
_CORES = "cores.json"


class ProcessRuntime:
    """A `ContainerRuntime` of supervised processes; like containers of an engine they outlive their worker.

    Args:
        state_dir: a folder of this node's own, where each container has a folder while it is there.
        hidden: further folders and files of this node that no confined experiment is to see; `state_dir` is one.
        nodes_of: tells the files of devices, below /dev, by their UUIDs; without it nobody opens any.
        is_confined: whether to use bubblewrap; by default where it works.
        may_be_bare: whether this may go unconfined where bubblewrap does not work.
        patience_seconds: how long a container goes on without a worker.
    """

    name = "process"

    def __init__(
        self,
        state_dir: Path,
        *,
        hidden: tuple[Path, ...] = (),
        nodes_of: Callable[[tuple[str, ...]], tuple[str, ...]] | None = None,
        is_confined: bool | None = None,
        may_be_bare: bool = True,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._folder = state_dir / "process"
        self._hidden = (state_dir, *hidden)
        self._nodes_of = nodes_of or (lambda _: ())
        self._asked = is_confined
        self._may_be_bare = may_be_bare
        self._patience_seconds = patience_seconds

    @cached_property
    def notice(self) -> str:
        """What a process lacks of a container."""
        weaker = (
            "FOR TRUSTED CODE ONLY: experiments run as processes of this machine, not in containers, without an image"
        )
        if self._is_confined:
            kept = "" if make_filter() else ", and no system call is refused on this kind of machine"
            return f"{weaker}; they are confined by bubblewrap, with memory limits that are measured{kept}"
        why = self._obstacle or "it was asked for"
        return f"{weaker}, and nothing keeps them from this user's files or from the network ({why})"

    def vet(self) -> None:
        """Refuse to run anything unconfined that nobody has asked for, or where experiments see what is the node's.

        `auto` alone is no such wish.
        """
        if not (self._is_confined or self._may_be_bare):
            raise InvalidSetting(
                f"no container engine answers, and processes cannot be confined: {self._obstacle}",
                hint="install bubblewrap, or for code that you trust set JOBQUEUE_RUNTIME=process",
            )
        if self._is_confined and is_shown_whole(self._folder.parent):
            raise InvalidSetting(
                f"experiments would see this node's state: {self._folder.parent} is where its Python lies, too",
                hint="set JOBQUEUE_STATE_DIR to another folder",
            )

    def find_fault(self, network: str) -> str:
        """Tell what there is not: a filter between a process and the machine's network."""
        return "a process has no filtered network (JOBQUEUE_RUNTIME=docker has)" if network == "egress" else ""

    def check(self) -> None:
        """Make the folder it needs; a confinement that was demanded has to work."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RuntimeFailure(f"no folder for process containers: {error}", hint="check the state folder") from error
        if self._asked and self._obstacle:
            raise RuntimeFailure(f"processes cannot be confined: {self._obstacle}", hint="install bubblewrap")

    def resolve(self, image: str, *, hold: Path | None = None) -> str:
        """Return it as it is: it is only recorded."""
        del hold
        return image

    def tidy(self) -> str:
        """Nothing is fetched."""
        return ""

    def start(self, plan: Plan) -> Container:
        """Start a supervisor, which starts the experiment."""
        self.check()
        # One that is not confined opens whatever its user may.
        nodes = self._nodes_of(plan.gpus) if plan.gpus and self._is_confined else ()
        folder = Path(tempfile.mkdtemp(prefix=f"{make_name(plan.labels)}-", dir=self._folder))
        try:
            container = self._start(plan, folder, nodes)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise RuntimeFailure(f"the process container could not be started: {error}") from error
        container.attend()
        return container

    def find(self, node_id: str) -> list[Container]:
        """Return this node's containers by what lies in their folders; one whose supervisor has gone is among them."""
        found: list[Container] = []
        for path in self._folder.glob(f"*/{_LABELS}"):
            labels = _read_labels(path)
            if labels is not None and labels.node_id == node_id:
                found.append(ProcessContainer(labels, path.parent))
        return found

    def _start(self, plan: Plan, folder: Path, nodes: tuple[str, ...]) -> ProcessContainer:
        if self._is_confined:
            start = make_confined_start(plan, hidden=self._hidden, nodes=nodes)
        else:
            scratch = folder / "tmp"
            scratch.mkdir(mode=0o700)
            start = make_bare_start(plan, scratch)
        cores = self._choose_cores(plan.resources.cpus)
        (folder / _CORES).write_text(json.dumps(cores))
        order = _make_order(start, plan) | {"patience_seconds": self._patience_seconds, "cores": cores}
        # Before there is anything to be found.
        (folder / _LABELS).write_text(json.dumps(asdict(plan.labels)))
        return ProcessContainer(plan.labels, folder, supervisor=_start_supervisor(start, order, folder))

    def _choose_cores(self, cpus: float) -> list[int]:
        """Return as many whole cores as `cpus` takes, those first that the fewest other containers have."""
        there = os.sched_getaffinity(0)
        taken = Counter(core for path in self._folder.glob(f"*/{_CORES}") for core in _read_cores(path))
        return sorted(there, key=lambda core: (taken[core], core))[: max(1, math.ceil(cpus))]

    def close(self) -> None:
        """Nothing is open; containers go on until they are removed or this process ends."""

    @cached_property
    def _obstacle(self) -> str:
        return "" if self._asked is False else find_obstacle()

    @cached_property
    def _is_confined(self) -> bool:
        return self._asked is not False and not self._obstacle


def _read_cores(path: Path) -> list[int]:
    with suppress(OSError, ValueError):
        return [int(core) for core in json.loads(path.read_text())]
    return []  # it is just being written, or removed


def _read_labels(path: Path) -> Labels | None:
    try:
        return Labels(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        _log.warning("container.labels_unreadable", extra={"folder": path.parent.name, "error": str(error)})
        return None


def _start_supervisor(start: Start, order: dict[str, object], folder: Path) -> "subprocess.Popen[bytes]":
    """Start it, with the order in a file without a name: the environment is in it, and arguments are public."""
    with ExitStack() as handed:
        listener = handed.enter_context(open_listener(folder))
        pipes = [_make_pipe(folder, stream, handed) for stream in STREAMS]
        options = _write_file(handed, "\0".join((*start.options, "")).encode())
        refused = _write_file(handed, make_filter())
        numbers = {OPTIONS: str(options), FILTER: str(refused)}
        argv = [numbers.get(word, word) for word in start.argv]
        number = _write_file(handed, json.dumps(order | {"argv": argv}).encode())
        words = (_PACKAGES, listener.fileno(), number, *(reader for reader, _ in pipes))
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-S", "-c", _BOOT, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=pipes[0][1],
            stderr=pipes[1][1],
            pass_fds=[listener.fileno(), number, options, refused, *(reader for reader, _ in pipes)],
            env={},
            start_new_session=True,
        )


def _make_order(start: Start, plan: Plan) -> dict[str, object]:
    asked = plan.resources
    data_bytes = _DATA_FACTOR * asked.memory_bytes + plan.pids * _STACK_BYTES
    limits = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": _OPEN_FILES, "RLIMIT_DATA": data_bytes}
    if asked.disk_bytes:
        limits["RLIMIT_FSIZE"] = asked.disk_bytes
    user = run_as()[0] if start.depth else os.geteuid()
    if user:
        # The kernel counts all that the user has, so what there is already is added, and the sandbox if it is his.
        sandbox = start.depth if user == os.geteuid() else 0
        limits["RLIMIT_NPROC"] = count_threads_of(user) + plan.pids + sandbox
    return {
        "env": dict(start.env),
        "folder": start.folder,
        "limits": limits,
        "memory_bytes": asked.memory_bytes,
        "threads": plan.pids + start.depth,
        "depth": start.depth,
    }


def _make_pipe(folder: Path, stream: str, handed: ExitStack) -> tuple[int, int]:
    """Make the pipe of a stream, which has a name so that the next worker can open it; returns both ends."""
    path = pipe_path(folder, stream)
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    handed.callback(os.close, reader)
    writer = os.open(path, os.O_WRONLY)
    handed.callback(os.close, writer)
    # Larger than by default where the user may: fewer turns between writer and reader.
    with suppress(OSError):
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return reader, writer


def _write_file(handed: ExitStack, content: bytes) -> int:
    number = os.memfd_create("order")
    handed.callback(os.close, number)
    with open(number, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(number, 0, os.SEEK_SET)
    return number
