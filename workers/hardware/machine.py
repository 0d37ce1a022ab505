"""Cores, memory and disk of this machine, as a slot's offer."""

import os
import shutil
from pathlib import Path

from jobqueue.resources import Offer

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def measure_offer(folder: Path, *, cpus: float = 0, memory_bytes: int = 0) -> Offer:
    """Return what this process may give away.

    Args:
        folder: where the work lies; its file system's size is the disk.
        cpus: the cores that an operator gives away; 0: all that are there.
        memory_bytes: the same of memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return Offer(
        cpus=cpus or float(count_cores()),
        memory_bytes=memory_bytes or _memory_bytes(),
        disk_bytes=shutil.disk_usage(folder).total,
    )


def count_cores(cpus: float = 0) -> int:
    """Return how many cores this process may use, or the whole ones of what an operator gives away."""
    return max(1, int(cpus)) if cpus else len(os.sched_getaffinity(0))


def _memory_bytes() -> int:
    """Return the machine's memory, or the limit of this process's own container if that is less."""
    physical_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [physical_bytes]
    for path in _CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)
