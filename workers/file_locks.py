"""Files and folders that a process has locked until it closes them or ends, however it ends: the kernel sees to that.

Whoever only asks has a lock that others share, for a moment, so that those who ask do not meet each other.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from jobqueue.errors import RuntimeFailure

# An engine may take minutes to remove an image, and nobody else may use it meanwhile.
LOCK_WITHIN: Final = timedelta(minutes=5)
_POLL_SECONDS: Final = 0.005
_TRIES: Final = 10
_TRY_SECONDS: Final = 0.02


@contextmanager
def locked(
    path: Path, *, check: Callable[[], object] = lambda: None, within: timedelta | None = None
) -> Iterator[None]:
    """Have a file locked, for the moment of a change; wait for it at most `within`, LOCK_WITHIN when nothing is said.

    `check` is called while somebody else has it.

    Raises:
        RuntimeFailure: somebody has it for far too long: a stopped process, say, that is not to stop all others.
    """
    handle = _open(path)
    limit = (within or LOCK_WITHIN).total_seconds()
    ends_at = time.monotonic() + limit
    try:
        while not try_lock(handle):
            check()
            if time.monotonic() > ends_at:
                raise RuntimeFailure(
                    f"another worker of this machine has held {path} for {limit:g} seconds",
                    hint="is one of them stopped, or the container engine or the disk very slow?",
                )
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def lock(path: Path) -> int | None:
    """Lock a file, made if need be, and return its number, or None when another process has it; never inherited."""
    handle = _open(path)
    if lock_patiently(handle):
        return handle
    os.close(handle)
    return None


def lock_patiently(handle: int) -> bool:
    """Lock an open file, of which somebody may just be asking whether it is locked; False when somebody has it."""
    for _ in range(_TRIES):
        if try_lock(handle):
            return True
        time.sleep(_TRY_SECONDS)
    return False


def try_lock(handle: int) -> bool:
    """Lock an open file or folder until its number is closed or this process ends; False when somebody has it."""
    with suppress(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def is_locked(path: Path) -> bool:
    """Tell whether a process has a file or folder locked; never through a link."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return is_taken(handle)
        finally:
            os.close(handle)
    return False


def is_taken(handle: int) -> bool:
    """Tell whether a process has an open file or folder locked."""
    with suppress(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    return True


def is_at(path: Path, handle: int) -> bool:
    """Tell whether what is there now still is what was opened."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(handle))
    return False


def open_folder(folder: Path) -> int:
    """Open a folder, to lock it; never through a link."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
