"""A folder as one file with one name for one content: the same files make the same bytes on any machine."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO, Final

from jobqueue.errors import InvalidSpec, Problem
from producers.packaging.ignoring import IGNORE_FILE
from producers.packaging.scanning import Entry, identity

# Fast on few cores; a higher level takes twice the time for a tenth less.
_LEVEL: Final = 3
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What an archive came to."""

    sha256: str
    size_bytes: int


def write_archive(entries: list[Entry], target: IO[bytes], *, field: str) -> Packed:
    """Write the entries to `target` as a compressed tar, with bounded memory.

    Owners, times and all of the mode but the right to execute are dropped, so that they do not change the name.

    Raises:
        InvalidSpec: a file changed, went or cannot be read while it was packed.
    """
    import zstandard

    hashed = _Hashed(target, field)
    with (
        zstandard.ZstdCompressor(level=_LEVEL, threads=0).stream_writer(hashed, closefd=False) as compressed,  # type: ignore[arg-type]
        tarfile.TarFile(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT, copybufsize=_PIECE_BYTES) as archive,
    ):
        for entry in entries:
            _add(archive, entry, field)
            archive.getmembers().clear()  # it would remember every header
    return Packed(sha256=hashed.digest.hexdigest(), size_bytes=hashed.size_bytes)


class _Hashed(io.RawIOBase):
    """Passes what is written on, and keeps its digest and size."""

    def __init__(self, target: IO[bytes], field: str) -> None:
        self._target = target
        self._field = field
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, piece: bytes) -> int:  # type: ignore[override]
        self.digest.update(piece)
        self.size_bytes += len(piece)
        left = memoryview(piece)
        try:
            while left:
                left = left[self._target.write(left) :]
        except OSError as error:
            # Not the fault of the file that is being packed.
            message = f"no room to pack it: {error.strerror} (TMPDIR names the folder that is used)"
            raise InvalidSpec([Problem(path=self._field, message=message)]) from error
        return len(piece)


def _add(archive: tarfile.TarFile, entry: Entry, field: str) -> None:
    header = tarfile.TarInfo(entry.path)
    header.mode = 0o755 if entry.is_folder or entry.is_executable else 0o644
    if entry.is_folder:
        header.type = tarfile.DIRTYPE
        archive.addfile(header)
        return
    header.size = entry.size_bytes
    with opened_unchanged(entry, field=field) as content:
        archive.addfile(header, content)


@contextmanager
def opened_unchanged(entry: Entry, *, field: str) -> Iterator[BinaryIO]:
    """Open a file that was scanned, and make sure that it is the same before and after it is read.

    Raises:
        InvalidSpec: it is not, or it cannot be read.
    """
    try:
        descriptor = os.open(entry.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as content:
            _require_unchanged(entry, content)
            yield content
            _require_unchanged(entry, content)
    except OSError as error:
        raise InvalidSpec([Problem(path=field, message=_fault(entry, error))]) from error


def _require_unchanged(entry: Entry, content: BinaryIO) -> None:
    if identity(os.fstat(content.fileno())) != entry.identity:
        raise _Changed


class _Changed(OSError):
    """The file is not what was scanned."""


def _fault(entry: Entry, error: OSError) -> str:
    # A file that became shorter ends the copy with an error that has no number.
    if isinstance(error, _Changed | FileNotFoundError) or error.errno is None:
        return f"{entry.path} changed while it was packed (stop what writes to it, or list it in {IGNORE_FILE})"
    return f"{entry.path} cannot be packed: {error.strerror} (list it in {IGNORE_FILE})"
