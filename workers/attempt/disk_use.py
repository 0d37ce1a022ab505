"""How much a running container's workspace takes: a quota where the file system has none.

Looked at again and again, less often the longer a look takes, so that a workspace of a million files costs little. What
somebody has deleted and keeps open takes room as well and is in no folder: it is found through the processes that see
the workspace.
"""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Final

from jobqueue.quantities import describe_size
from jobqueue.spec import WORKSPACE
from workers.rounds import Rounds

MOST_ENTRIES: Final = 4_000_000
# What even an empty file counts, or files without content would take all that a disk can have.
SMALLEST_FILE_BYTES: Final = 4096
# Paths may be longer than the kernel takes in one piece, and each level that is entered costs a descriptor.
MOST_DEPTH: Final = 256
_LOOK_EVERY: Final = timedelta(seconds=1)
# Between two looks so many times as long as the last one took.
_REST: Final = 20
_LONGEST_REST: Final = timedelta(minutes=1)
_DISK_BLOCK: Final = 512  # of st_blocks, whatever the file system uses
_MOST_DESCRIPTORS: Final = 100_000
_PROCESSES: Final = Path("/proc")
_FOLDER: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(kw_only=True)
class _Count:
    """What was found so far; of a file with several names once."""

    bytes_: int = 0
    entries: int = 0
    depth: int = 0
    linked: set[tuple[int, int]] = field(default_factory=set)

    def add(self, found: os.stat_result) -> None:
        """Count one entry."""
        self.entries += 1
        if found.st_nlink != 1 and not stat.S_ISDIR(found.st_mode):
            identity = (found.st_dev, found.st_ino)
            if identity in self.linked:
                return
            self.linked.add(identity)
        self.bytes_ += max(found.st_blocks * _DISK_BLOCK, SMALLEST_FILE_BYTES)


class DiskMeter:
    """Measures one workspace on a thread of its own.

    Args:
        workspace: as the node sees it.
        limit_bytes: what it may take on the disk.

    Attributes:
        excess: which limit it is over, in words; empty while it is not.
    """

    def __init__(self, workspace: Path, *, limit_bytes: int) -> None:
        self.excess = ""
        self._workspace, self._limit_bytes = workspace, limit_bytes
        self._rest = _LOOK_EVERY
        self._rounds = Rounds("disk-use", self._go_round, every=lambda: self._rest)

    def start(self) -> None:
        """Begin to look."""
        self._rounds.start()

    def close(self) -> None:
        """Stop looking; a look that is on its way ends by itself."""
        self._rounds.close(within=timedelta(0))

    def look(self) -> None:
        """Look, and once more where that was over: what is moved or deleted during a look may be counted twice."""
        self.excess = self._find_excess() and self._find_excess()

    def _find_excess(self) -> str:
        """Return what it is over. A workspace that is gone or cannot be read takes nothing."""
        count = _Count()
        with suppress(OSError):
            for _ in chain(_walk(self._workspace, count), _find_deleted(self._workspace, count)):
                if excess := self._judge(count):
                    return excess
        return ""

    def _judge(self, count: _Count) -> str:
        if count.bytes_ > self._limit_bytes:
            return f"more than {describe_size(self._limit_bytes)} in its workspace"
        if count.entries > MOST_ENTRIES:
            return f"more than {MOST_ENTRIES} files in its workspace"
        return f"folders in its workspace that are more than {MOST_DEPTH} deep" if count.depth > MOST_DEPTH else ""

    def _go_round(self) -> None:
        began = time.monotonic()
        self.look()
        self._rest = min(max(_LOOK_EVERY, _REST * timedelta(seconds=time.monotonic() - began)), _LONGEST_REST)
        if self.excess:
            self._rounds.close()


def _walk(root: Path, count: _Count) -> Iterator[None]:
    """Count what lies in a folder, by descriptors and never through a link; yields now and then."""
    opened = [os.open(root, os.O_RDONLY | _FOLDER)]
    folders = [_count_folder(opened[0], count)]
    try:
        while opened:
            name = None
            with suppress(OSError):
                name = next(folders[-1], None)
            yield
            if name is None:
                folders.pop()
                os.close(opened.pop())
                continue
            with suppress(OSError):  # it may be gone by now
                opened.append(_open(name, opened[-1]))
                count.depth = max(count.depth, len(opened))
                folders.append(_count_folder(opened[-1], count))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _count_folder(descriptor: int, count: _Count) -> Iterator[str]:
    """Count what is in one folder, and yield the folders in it; their names are not kept, there may be millions."""
    with os.scandir(descriptor) as entries:
        for entry in entries:
            is_folder = False
            with suppress(OSError):
                count.add(entry.stat(follow_symlinks=False))
                is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder:
                yield entry.name
            if count.entries > MOST_ENTRIES:
                break


def _open(name: str, parent: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | _FOLDER, dir_fd=parent)
    except PermissionError:
        # Whoever hides what is in a folder from a worker of the same user gets it shown again.
        place = os.open(name, os.O_PATH | _FOLDER, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{place}", 0o700)  # noqa: PTH101 - the descriptor's folder, whatever its name
            return os.open(".", os.O_RDONLY | _FOLDER, dir_fd=place)
        finally:
            os.close(place)


def _find_deleted(workspace: Path, count: _Count) -> Iterator[None]:
    """Count what the processes that see the workspace keep open of it without a name; yields now and then."""
    there = workspace.stat()
    left = _MOST_DESCRIPTORS
    for pid in _find_inhabitants(there):
        with suppress(OSError), os.scandir(pid / "fd") as descriptors:
            for descriptor in descriptors:
                with suppress(OSError):
                    found = descriptor.stat()
                    if found.st_dev == there.st_dev and found.st_nlink == 0 and stat.S_ISREG(found.st_mode):
                        count.add(found)
                left -= 1
                if left == 0:
                    return
        yield


def _find_inhabitants(there: os.stat_result) -> Iterator[Path]:
    seen = str(WORKSPACE).lstrip("/")
    for pid in _PROCESSES.iterdir():
        if pid.name.isdigit():
            with suppress(OSError):
                found = (pid / "root" / seen).stat()
                if (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino):
                    yield pid
