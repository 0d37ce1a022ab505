"""Who needs what a node keeps, and when it was used last: small files that outlive every process.

For each thing that is kept there is one file. Its age tells the last use. An attempt that needs the thing has another
link of that file in its own folder, and the kernel counts the links: no process has to be alive for a hold to last, an
adopted attempt goes on holding, and the hold goes with the attempt's folder, whoever removes that.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workers.attempt.trees import remove
from workers.file_locks import is_at, open_folder, try_lock


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One thing that is kept.

    Attributes:
        name: of its file or folder.
        used_at_ns: when it was used last, on the clock of the file system.
        is_held: whether any attempt needs it now.
    """

    name: str
    size_bytes: int
    used_at_ns: int
    is_held: bool


def hold(file: Path, link: Path) -> None:
    """Note a use, and hold the thing until `link` is removed; held there already is fine.

    Raises:
        FileNotFoundError: it is not kept, or nobody waits for it any more: the folder of `link` is gone.
    """
    touch(file)
    with suppress(FileExistsError):
        os.link(file, link)


def touch(file: Path) -> None:
    """Note a use. With this process's clock: the kernel's own is too coarse to tell one use from the next."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))


def look(file: Path, *, size_bytes: int, name: str) -> Kept:
    """Return what a thing's file tells.

    Raises:
        FileNotFoundError: it is not kept.
    """
    seen = file.stat()
    return Kept(name=name, size_bytes=size_bytes, used_at_ns=seen.st_mtime_ns, is_held=seen.st_nlink > 1)


def choose(kept: Iterable[Kept], *, bound_bytes: int, missing_bytes: int = 0) -> list[Kept]:
    """Return what is to go, the least recently used first: nothing that is held.

    Args:
        kept: all there is.
        bound_bytes: what stays has no more, if that can be.
        missing_bytes: what goes has no less, if that can be.
    """
    things = list(kept)
    over = max(sum(thing.size_bytes for thing in things) - bound_bytes, missing_bytes)
    chosen = []
    for thing in sorted(things, key=lambda thing: thing.used_at_ns):
        if over <= 0:
            break
        if not thing.is_held:
            chosen.append(thing)
            over -= thing.size_bytes
    return chosen


def free_bytes(folder: Path) -> int:
    """Return how much this user may still write to the disk of a folder."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def clear(folders: Iterable[Path]) -> bool:
    """Remove what nobody needs; what a process is at, told by a lock that ends with it, is left to it.

    Returns:
        Whether a process is at any of it.
    """
    is_any_left = False
    for folder in folders:
        with suppress(FileNotFoundError, NotADirectoryError):
            handle = open_folder(folder)
            try:
                if not try_lock(handle):
                    is_any_left = True
                elif is_at(folder, handle):
                    remove(folder)
            finally:
                os.close(handle)
    return is_any_left
