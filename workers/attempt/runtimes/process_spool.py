"""One output stream of a process container: a pipe with a name, and files with what was taken from it.

Pipe and files outlive the worker that reads them, and the kernel moves bytes from one to the other in one step, so that
the next worker finds every byte. What is kept is bounded: of two files the older one gives way.
"""

import logging
import os
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

STREAMS: Final = ("stdout", "stderr")
FILE_BYTES: Final = 16 * 2**20
_PIECE_BYTES = 64 * 1024


class Spool:
    """Where one reader is in one stream.

    Args:
        folder: of the container.
        stream: `stdout` or `stderr`.
        passed_bytes: of the newer file, by an earlier reader in this process; None to begin with the oldest kept byte.

    Attributes:
        pipe: the number of the reading end, to wait on.
        passed_bytes: how much of the newer file was passed on.
    """

    def __init__(self, folder: Path, stream: str, *, passed_bytes: int | None = None) -> None:
        self._newer, self._older = folder / f"{stream}.log", folder / f"{stream}.log.1"
        self.pipe = os.open(pipe_path(folder, stream), os.O_RDONLY | os.O_NONBLOCK)
        try:
            self._file = _open(self._newer)
        except BaseException:
            os.close(self.pipe)
            raise
        self._size = os.fstat(self._file).st_size
        self.passed_bytes = min(passed_bytes or 0, self._size)
        self._before = _open(self._older) if passed_bytes is None and self._older.exists() else None
        self._passed_before = 0
        self._unkept = b""

    def peek(self) -> bytes | None:
        """Return the next piece that was not passed on: empty at the end, None while nothing has come."""
        if self._before is not None:
            piece = os.pread(self._before, _PIECE_BYTES, self._passed_before)
            if piece:
                return piece
            os.close(self._before)
            self._before = None
        if not self._unkept and self.passed_bytes == self._size:
            try:
                if not self._move():
                    return b""
            except BlockingIOError:
                return None
        return self._unkept or os.pread(self._file, _PIECE_BYTES, self.passed_bytes)

    def advance(self, piece: bytes) -> None:
        """Note that a piece was passed on."""
        if self._before is not None:
            self._passed_before += len(piece)
        elif self._unkept:
            self._unkept = b""
        else:
            self.passed_bytes += len(piece)

    def close(self) -> None:
        """Close what is open; what was not taken stays."""
        os.close(self.pipe)
        os.close(self._file)
        if self._before is not None:
            os.close(self._before)

    def _move(self) -> int:
        """Take what the pipe holds, at most a piece; returns how many bytes, 0 at the end."""
        try:
            if self._size >= FILE_BYTES:
                self._begin_another()
            moved = os.splice(self.pipe, self._file, _PIECE_BYTES, offset_dst=self._size, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            raise
        except OSError as error:
            return self._read_unkept(error)
        self._size += moved
        return moved

    def _begin_another(self) -> None:
        self._newer.rename(self._older)
        file = _open(self._newer)
        os.close(self._file)
        self._file = file
        self._size = self.passed_bytes = 0

    def _read_unkept(self, error: OSError) -> int:
        """Go on where the disk does not take it: the next worker would miss it, this one need not."""
        _log.warning("output.not_kept", extra={"error": error.strerror})
        self._unkept = os.read(self.pipe, _PIECE_BYTES)
        return len(self._unkept)


def pipe_path(folder: Path, stream: str) -> Path:
    """Return where the pipe of a stream lies in a container's folder."""
    return folder / stream


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
