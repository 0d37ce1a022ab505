"""Folders that a process is at, told by a lock that ends with it, and the removal of those that nobody is at."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from workers.attempt.holds import try_lock
from workers.attempt.trees import remove


def clear(folders: Iterable[Path]) -> bool:
    """Remove what nobody needs; what a process is at is left to it.

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


def is_locked(folder: Path) -> bool:
    """Tell whether a process is at it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        handle = open_folder(folder)
        try:
            return not try_lock(handle)
        finally:
            os.close(handle)
    return False


def is_at(folder: Path, handle: int) -> bool:
    """Tell whether a folder still is the one that was opened."""
    try:
        return folder.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def open_folder(folder: Path) -> int:
    """Open a folder, to lock it; never through a link."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
