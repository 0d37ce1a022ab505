"""What the kernel's control group says about a container while it runs: its memory, its processes.

An engine forgets the peak when the container ends, and Podman does not tell a kill for memory at all; both stand in
files that cost microseconds to read. They are read where they are there, and silently missed where they are not.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """What was seen last.

    Attributes:
        peak_bytes: the highest use so far.
        kills: processes killed for the limit so far.
    """

    peak_bytes: int = 0
    kills: int = 0


def read_memory_use(pid: int, *, identity: str, processes: Path = Path("/proc")) -> MemoryUse | None:
    """Return the use of the control group of process `pid`, or None when it is not the container's or cannot be read.

    `identity` must stand in the group's path: a worker in a namespace of its own sees other processes under these ids.
    """
    with suppress(OSError, ValueError):
        folder = _find_group((processes / str(pid) / "cgroup").read_text(), identity)
        if folder is not None:
            return _read_group(folder)
    return None


def find_members(pid: int, *, identity: str, processes: Path = Path("/proc")) -> list[int]:
    """Return the processes of the control group of process `pid`; none where `read_memory_use` would return None."""
    with suppress(OSError, ValueError):
        folder = _find_group((processes / str(pid) / "cgroup").read_text(), identity)
        if folder is not None:
            return [int(member) for member in (folder / "cgroup.procs").read_text().split()]
    return []


def _find_group(lines: str, identity: str) -> Path | None:
    for line in lines.splitlines():
        _, controllers, path = line.split(":", 2)
        folder = _GROUPS / controllers / path.lstrip("/")
        if identity in path and (controllers == "memory" or (folder / "memory.events").exists()):
            return folder
    return None


def _read_group(folder: Path) -> MemoryUse:
    is_first_version = (folder / "memory.oom_control").exists()
    peak = folder / ("memory.max_usage_in_bytes" if is_first_version else "memory.peak")
    events = folder / ("memory.oom_control" if is_first_version else "memory.events")
    kills = _KILLS.search(events.read_text())
    return MemoryUse(
        peak_bytes=int(peak.read_text()) if peak.exists() else 0,
        kills=int(kills[1]) if kills else 0,
    )
