"""Folders that a container wrote to, given away and removed without following what lies in them.

A container can leave folders without any right, names that are no text, links to the node's own files, and folders
deeper than any path may be long. Everything here goes by descriptors, one name at a time.
"""

import errno
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

_FOLDER: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROUNDS: Final = 100
_ALL_RIGHTS: Final = 0o700


def own(folder: Path, *, uid: int, gid: int) -> None:
    """Give a folder and all that is in it to a user; links themselves change hands, not what they lead to."""
    for _, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        os.chown(descriptor, uid, gid)
        for name in (*folders, *files):
            os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)


def remove(folder: Path) -> bool:
    """Remove a folder with all that is in it; gone already is fine.

    Returns:
        Whether nothing is left. What cannot be removed is logged and stays, for whoever tidies the node later.
    """
    try:
        _remove(folder)
    except OSError as error:
        _log.warning("workspace.not_removed", extra={"folder": str(folder), "error": error.strerror or str(error)})
        return False
    return True


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        try:
            with _opened(str(folder)) as root:
                _empty(root)
        except NotADirectoryError:
            folder.unlink()  # a file, or a link to somewhere else
        else:
            folder.rmdir()


def _empty(root: int) -> None:
    """Remove what is in a folder; folders further down are moved up first, so that depth does not matter."""
    for _ in range(_ROUNDS):
        is_empty = True
        with os.scandir(root) as entries:
            for entry in entries:
                is_empty = False
                if entry.is_dir(follow_symlinks=False):
                    moved = [entry.name]
                    while moved:
                        moved += _flatten(moved.pop(), root)
                else:
                    _unlink(entry.name, root)
        if is_empty:
            return
    raise OSError("something keeps writing to it")


def _flatten(name: str, root: int) -> list[str]:
    """Remove a folder that lies in `root`, after its own folders were moved to `root`; returns their new names."""
    moved = []
    with _opened(name, root) as folder, os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                with _opened(entry.name, folder):
                    pass  # a folder that may not be written to may not be moved either
                moved.append(secrets.token_hex(16))
                os.rename(entry.name, moved[-1], src_dir_fd=folder, dst_dir_fd=root)
            else:
                _unlink(entry.name, folder)
    # What the listing skipped because the folder changed under it is left for the next round.
    with suppress(FileNotFoundError):
        try:
            os.rmdir(name, dir_fd=root)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
    return moved


def _unlink(name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


@contextmanager
def _opened(name: str, parent: int | None = None) -> Iterator[int]:
    """Open a folder, after it was given the rights that takes, and never through a link."""
    place = os.open(name, os.O_PATH | _FOLDER, dir_fd=parent)
    try:
        if os.fstat(place).st_mode & _ALL_RIGHTS != _ALL_RIGHTS:
            os.chmod(f"/proc/self/fd/{place}", _ALL_RIGHTS)  # noqa: PTH101 - the descriptor's folder, whatever its name
        folder = os.open(".", os.O_RDONLY | _FOLDER, dir_fd=place)
    finally:
        os.close(place)
    try:
        yield folder
    finally:
        os.close(folder)
