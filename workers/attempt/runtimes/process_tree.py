"""All descendants of a process: found, weighed, frozen, thawed and killed, whatever session or group they hide in.

It holds for a process that is a child subreaper: then no descendant can leave its tree. Only the standard library,
because the supervisor of a process container starts with it.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROCESSES = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Where the fields of /proc/<pid>/stat stand behind the name, which may hold spaces and brackets.
_STATE, _THREADS, _PAGES = 0, 17, 21
_ROUNDS = 500
_ROUND_SECONDS = 0.001
_STILL = "TtZX"
_IN_MEMORY = ("tmp", "dev/shm")
# What the kernel takes for a file without content.
_ENTRY_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process of the tree: its id, its state's letter, its threads and the memory it has in use."""

    pid: int
    state: str
    threads: int
    resident_bytes: int


def find_children(pid: int) -> list[int]:
    """Return the ids of a process's children, of all of its threads."""
    children: list[int] = []
    with suppress(OSError):
        for task in (_PROCESSES / str(pid) / "task").iterdir():
            with suppress(OSError):
                children += map(int, (task / "children").read_text().split())
    return children


def find_descendants(root: int) -> list[int]:
    """Return the ids of all processes below `root`, parents before their children."""
    found: list[int] = []
    waiting = [root]
    while waiting:
        children = find_children(waiting.pop())
        found += children
        waiting += children
    return found


def read_members(root: int) -> list[Member]:
    """Return what is known of each live process below `root`; one that ends meanwhile is left out."""
    members = (_read_member(pid) for pid in find_descendants(root))
    return [member for member in members if member is not None and member.state not in "ZX"]


def weigh(members: Iterable[Member], kept_bytes: int = 0) -> int:
    """Return the bytes in use by all members, with what they share counted once; dearer than adding up.

    Args:
        members: of the tree.
        kept_bytes: of the files that they have in memory; those that are mapped are counted once, too.
    """
    read = [_read_proportional_bytes(member) for member in members]
    shared = sum(size for _, size in read)
    return sum(size for size, _ in read) - shared + max(shared, kept_bytes)


def weigh_files(pid: int) -> int:
    """Return the bytes that the files in memory of a confined process take, with their entries; 0 for another one."""
    total = 0
    for place in _IN_MEMORY:
        with suppress(OSError):
            # Opened once: while it is being confined, the same path leads now here, now there.
            folder = os.open(_PROCESSES / str(pid) / "root" / place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # Until it is confined it sees the folders of the machine.
                if os.fstat(folder).st_dev != Path("/", place).stat().st_dev:
                    found = os.statvfs(folder)
                    total += (found.f_blocks - found.f_bfree) * found.f_frsize
                    total += (found.f_files - found.f_ffree) * _ENTRY_BYTES
            finally:
                os.close(folder)
    return total


def count_threads_of(user: int) -> int:
    """Return how many threads a user has on this machine, which is what the kernel's limit per user counts."""
    count = 0
    for entry in _PROCESSES.iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == user:
                count += sum(1 for _ in (entry / "task").iterdir())
    return count


def count_machine_kills() -> int:
    """Return how many processes the kernel has killed for want of memory: of this control group, else of this machine.

    A group's count holds kills for any limit and for none; what dies in other containers of the machine is not in it.
    """
    for file in (*_find_events(), _PROCESSES / "vmstat"):
        with suppress(OSError):
            if kills := _KILLS.search(file.read_text()):
                return int(kills[1])
    return 0


def _find_events() -> Iterator[Path]:
    with suppress(OSError):
        for line in (_PROCESSES / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                yield _GROUPS / controllers / path.lstrip("/") / "memory.oom_control"
            if not controllers:
                yield _GROUPS / path.lstrip("/") / "memory.events"


def freeze_tree(root: int) -> None:
    """Stop every descendant: in rounds, because one that still runs may have started another meanwhile."""
    for _ in range(_ROUNDS):
        running = [member.pid for member in read_members(root) if member.state not in _STILL]
        if not running:
            return
        _send(running, signal.SIGSTOP)
        time.sleep(_ROUND_SECONDS)


def thaw_tree(root: int) -> None:
    """Let every descendant go on."""
    _send(find_descendants(root), signal.SIGCONT)


def kill_tree(root: int, reap: Callable[[], None]) -> None:
    """Kill every descendant of this process and return when none is left; `reap` collects the dead."""
    freeze_tree(root)
    while pids := find_descendants(root):
        _send(pids, signal.SIGKILL)
        reap()
        time.sleep(_ROUND_SECONDS)


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _read_member(pid: int) -> Member | None:
    with suppress(OSError):
        fields = (_PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()
        resident_bytes = int(fields[_PAGES]) * _PAGE_BYTES
        return Member(pid=pid, state=fields[_STATE], threads=int(fields[_THREADS]), resident_bytes=resident_bytes)
    return None


def _read_proportional_bytes(member: Member) -> tuple[int, int]:
    """Return all that a process has in use, and how much of it is of files in memory."""
    with suppress(OSError):
        lines = (_PROCESSES / str(member.pid) / "smaps_rollup").read_text().splitlines()
        sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss")}
        if "Pss:" in sizes:
            return sizes["Pss:"], sizes.get("Pss_Shmem:", 0)
    return member.resident_bytes, 0
