"""Who has which device: one locked file for each UUID, in a folder that all workers of a machine share.

The kernel gives a lock back when the process that has it is gone, however it went. A container outlives its worker, and
its device's lock does not: whoever takes the device next looks for containers that have it, and at its memory.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from jobqueue.errors import InvalidSetting
from workers.file_locks import is_taken, lock_patiently

_SHARED_FOLDER: Final = 0o1777
_SHARED_FILE: Final = 0o666
_HOLDER_BYTES: Final = 200


@dataclass(frozen=True, kw_only=True)
class DeviceLocks:
    """The locks of one machine's devices; `open_device_locks` makes it."""

    folder: Path

    def take(self, uuid: str, *, owner: str) -> int | None:
        """Take a device until the number that is returned is closed or this process ends; None when it is taken.

        Args:
            uuid: of the device.
            owner: told to whoever finds it taken.

        Raises:
            InvalidSetting: the file cannot be made or opened.
        """
        handle = self._open(uuid)
        if not lock_patiently(handle):
            os.close(handle)
            return None
        with suppress(OSError):  # another user's file may be locked, and not written
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{owner} (process {os.getpid()})".encode(), 0)
        return handle

    def holder(self, uuid: str) -> str:
        """Return who has a device, in words; empty when nobody has."""
        with suppress(OSError):
            handle = os.open(self._path(uuid), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if is_taken(handle):
                    return os.pread(handle, _HOLDER_BYTES, 0).decode("utf-8", "replace") or "somebody"
            finally:
                os.close(handle)
        return ""

    def _path(self, uuid: str) -> Path:
        return self.folder / quote(uuid, safe="")

    def _open(self, uuid: str) -> int:
        path = self._path(uuid)
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with suppress(FileExistsError):
                handle = os.open(path, flags | os.O_RDWR | os.O_CREAT | os.O_EXCL, _SHARED_FILE)
                # The mask of this process is not meant for what all users share.
                os.fchmod(handle, _SHARED_FILE)
                return handle
            try:
                return os.open(path, flags | os.O_RDWR)
            except PermissionError:
                return os.open(path, flags | os.O_RDONLY)
        except OSError as error:
            raise InvalidSetting(
                f"no lock for {uuid}: {error}", hint=f"check who may write to {self.folder}"
            ) from error


def open_device_locks(folder: Path) -> DeviceLocks:
    """Return the locks of this machine, which all of its services are to share.

    Raises:
        InvalidSetting: their folder cannot be made.
    """
    try:
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            folder.chmod(_SHARED_FOLDER)
    except OSError as error:
        raise InvalidSetting(
            f"no folder for the locks of devices: {error}", hint="check JOBQUEUE_DEVICE_LOCKS"
        ) from error
    return DeviceLocks(folder=folder)
