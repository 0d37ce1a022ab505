"""Experiments as confined processes, for machines without a container engine: weaker than a container, and says so."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.base import Container, Plan
from workers.attempt.runtimes.hardening import make_name, run_as
from workers.attempt.runtimes.process_container import Lines, ProcessContainer
from workers.attempt.runtimes.process_tree import count_threads_of
from workers.attempt.runtimes.sandbox import OPTIONS, Start, find_obstacle, make_bare_start, make_confined_start

_OPEN_FILES = 4096
# Behind the supervisor's own measuring: a process that asks for far more than the limit gets an error at once.
_DATA_FACTOR = 4
_PIPE_BYTES = 2**20
_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from workers.attempt.runtimes.shim import main; main()"
_PACKAGES = Path(__file__).parents[3]


class ProcessRuntime:
    """A `ContainerRuntime` of supervised processes; they die with the worker, so there is never one to find.

    Args:
        state_dir: a folder of this worker's own; each container's `/tmp` lies in it while it runs.
        is_confined: whether to use bubblewrap; by default where it works.
    """

    name = "process"

    def __init__(self, state_dir: Path, *, is_confined: bool | None = None) -> None:
        self._folder = state_dir / "process"
        self._asked = is_confined

    @cached_property
    def notice(self) -> str:
        """What a process lacks of a container."""
        weaker = "experiments run as processes of this machine, not in containers: the image is not used"
        if self._is_confined:
            return f"{weaker}; they are confined by bubblewrap, with memory limits that are measured and not enforced"
        why = self._obstacle or "it was asked for"
        return f"{weaker}, and nothing keeps them from this user's files or from the network ({why})"

    def check(self) -> None:
        """Make the folder it needs; a confinement that was demanded has to work."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RuntimeFailure(f"no folder for process containers: {error}", hint="check the state folder") from error
        if self._asked and self._obstacle:
            raise RuntimeFailure(f"processes cannot be confined: {self._obstacle}", hint="install bubblewrap")

    def resolve(self, image: str) -> str:
        """Return it as it is: it is only recorded."""
        return image

    def start(self, plan: Plan) -> Container:
        """Start a supervisor, which starts the experiment."""
        self.check()
        scratch = Path(tempfile.mkdtemp(prefix=f"{make_name(plan.labels)}-", dir=self._folder))
        try:
            if self._is_confined:
                if os.geteuid() == 0:
                    os.chown(scratch, *run_as())
                start = make_confined_start(plan, scratch)
            else:
                start = make_bare_start(plan, scratch)
            return ProcessContainer(plan.labels, _start_supervisor(start, plan, scratch))
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise RuntimeFailure(f"the process container could not be started: {error}") from error

    def find(self, node_id: str) -> list[Container]:  # noqa: ARG002 - the port's
        """Return nothing: none outlives its worker."""
        return []

    def close(self) -> None:
        """Nothing is open; containers go on until they are removed or this process ends."""

    @cached_property
    def _obstacle(self) -> str:
        return "" if self._asked is False else find_obstacle()

    @cached_property
    def _is_confined(self) -> bool:
        return self._asked is not False and not self._obstacle


def _start_supervisor(start: Start, plan: Plan, scratch: Path) -> Lines:
    """Start it, with the order in a file without a name: the environment is in it, and arguments are public."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ExitStack() as kept, ExitStack() as handed:
        kept.callback(ours.close)
        handed.callback(its.close)
        streams = {stream: _make_pipe(kept, handed) for stream in ("stdout", "stderr")}
        options = _write_file(handed, "\0".join((*start.options, "")).encode())
        order = _write_file(handed, json.dumps(_make_order(start, plan, options)).encode())
        words = (_PACKAGES, its.fileno(), order, os.getpid())
        supervisor = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-S", "-c", _BOOT, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=streams["stdout"][1],
            stderr=streams["stderr"][1],
            pass_fds=[its.fileno(), order, options],
            env={},
            start_new_session=True,
        )
        kept.pop_all()
    readers = {stream: reader for stream, (reader, _) in streams.items()}
    return Lines(supervisor=supervisor, control=ours, streams=readers, scratch=scratch)


def _make_order(start: Start, plan: Plan, options: int) -> dict[str, object]:
    asked = plan.resources
    limits = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": _OPEN_FILES, "RLIMIT_DATA": _DATA_FACTOR * asked.memory_bytes}
    if asked.disk_bytes:
        limits["RLIMIT_FSIZE"] = asked.disk_bytes
    user = run_as()[0] if start.depth else os.geteuid()
    if user:
        # The kernel counts all that the user has, so what there is already is added, and the sandbox if it is his.
        sandbox = start.depth if user == os.geteuid() else 0
        limits["RLIMIT_NPROC"] = count_threads_of(user) + plan.pids + sandbox
    return {
        "argv": [str(options) if word == OPTIONS else word for word in start.argv],
        "env": dict(start.env),
        "folder": start.folder,
        "limits": limits,
        "memory_bytes": asked.memory_bytes,
        "threads": plan.pids + start.depth,
        "depth": start.depth,
    }


def _make_pipe(kept: ExitStack, handed: ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    kept.callback(os.close, reader)
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
