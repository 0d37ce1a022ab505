"""Unpacks a tree that somebody else packed: regular files and folders, below one folder, within limits, nothing else.

Only single headers are read with the standard library: its extraction, also with `filter="data"`, has let archives
write elsewhere, and it reads headers of any length into memory.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Final

from jobqueue.artifacts import MAX_TREE_DEPTH, MAX_TREE_ENTRIES, fold_path, path_fault
from jobqueue.errors import ArtifactRefused
from jobqueue.quantities import describe_size

_BLOCK: Final = 512
_PIECE_BYTES: Final = 1 << 20
# The largest that `zstd --ultra` asks for by itself; it bounds the memory.
_WINDOW_BYTES: Final = 1 << 27
# A long name, or the records that come before a header; many times what the longest path needs.
_MAX_RECORD_BYTES: Final = 1 << 16
# All of them together: nothing else counts them, and a small archive unpacks to very many.
_MAX_RECORDS_BYTES: Final = 1 << 26
_RECORDS_EACH: Final = 10
# Of the length of a record.
_MAX_DIGITS: Final = 20
# With a long name and a record before each.
_HEADERS_EACH: Final = 3
# What may follow the end: zeros up to the size of a tape's record.
_MAX_TRAILER_BYTES: Final = 1 << 20
# Of a tree whose size nobody declared.
_MAX_RATIO: Final = 200

_FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_KINDS: Final = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a link",
    tarfile.GNUTYPE_LONGLINK: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def unpack(
    source: Path,
    target: Path,
    *,
    max_bytes: int,
    declared_bytes: int = 0,
    is_read_only: bool = False,
    check: Callable[[], object] = lambda: None,
) -> int:
    """Unpack a `.tar.zst` into an empty folder and return the sum of its files in bytes.

    Args:
        source: the archive.
        target: an existing, empty folder that nobody else writes to.
        max_bytes: the files may have together.
        declared_bytes: what the sender said they have; 0 when that is not known.
        is_read_only: nobody may write to the files.
        check: called before each piece; what it raises ends the unpacking.

    Raises:
        ArtifactRefused: the archive is damaged, or an entry breaks a rule; the message names it.
        OSError: it cannot be written here, as when the disk is full.
    """
    import zstandard

    size_bytes = source.stat().st_size
    limit = min(max_bytes, declared_bytes or _MAX_RATIO * size_bytes + _PIECE_BYTES)
    with source.open("rb") as packed:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        tape = _Tape(decompressor.stream_reader(packed, read_across_frames=True), check)
        try:
            return _extract(tape, target, limit, mask=0o555 if is_read_only else 0o777)
        except zstandard.ZstdError as error:
            raise ArtifactRefused(f"the archive is not sound: {error}", hint="pack it with tar and zstd") from None


@dataclass(frozen=True, kw_only=True)
class _Member:
    path: str
    is_folder: bool
    is_executable: bool
    size_bytes: int


class _Tape:
    """The stream of an archive, read from front to back."""

    def __init__(self, stream: BinaryIO, check: Callable[[], object]) -> None:
        self._stream = stream
        self._check = check
        self._left_bytes, self._left_records = _MAX_RECORDS_BYTES, _RECORDS_EACH * MAX_TREE_ENTRIES

    def pieces(self, size_bytes: int, *, padded: bool = True) -> Iterator[bytes]:
        """Return the next bytes, then skip to the next block."""
        left = size_bytes
        while left:
            self._check()
            piece = self._stream.read(min(left, _PIECE_BYTES))
            if not piece:
                raise ArtifactRefused("the archive is cut short", hint="pack it again")
            left -= len(piece)
            yield piece
        if padded and size_bytes % _BLOCK:
            for _ in self.pieces(_BLOCK - size_bytes % _BLOCK, padded=False):
                pass

    def read(self, size_bytes: int) -> bytes:
        """Return that many bytes."""
        return b"".join(self.pieces(size_bytes))

    def read_record(self, header: tarfile.TarInfo) -> bytes:
        """Return what a header of no file carries."""
        if header.size > min(_MAX_RECORD_BYTES, self._left_bytes):
            raise ArtifactRefused(f"{_shown(header.name)} is a header of {header.size} bytes", hint="pack it again")
        content = self.read(header.size)
        self._left_bytes -= header.size
        self._left_records -= content.count(b"\n")
        if self._left_records < 0:
            raise ArtifactRefused(f"{_shown(header.name)} has one record too many", hint="pack it again")
        return content

    def require_end(self) -> None:
        """Make sure that only padding follows."""
        rest = 0
        while piece := self._stream.read(_PIECE_BYTES):
            rest += len(piece)
            if piece.count(0) != len(piece) or rest > _MAX_TRAILER_BYTES:
                raise ArtifactRefused("the archive goes on after its end", hint="pack it again")


def _extract(tape: _Tape, target: Path, limit: int, *, mask: int) -> int:
    total = 0
    known: dict[bytes, bytes] = {}
    for member in _members(tape):
        total += member.size_bytes
        if total > limit:
            raise ArtifactRefused(
                f"{_shown(member.path)}: the archive unpacks to more than {describe_size(limit)}",
                hint="declare its size, ask for more with disk=, or send less",
            )
        new = _note(member, known, target)
        if len(known) > MAX_TREE_ENTRIES:
            raise ArtifactRefused(
                f"{_shown(member.path)}: the archive has more than {MAX_TREE_ENTRIES} entries", hint="send fewer files"
            )
        try:
            _make_folders(target, new if member.is_folder else new[:-1])
            if not member.is_folder:
                _write(target / member.path, member, tape, mask=mask)
        except FileExistsError:
            raise ArtifactRefused(f"{_shown(member.path)} comes twice", hint="pack it again") from None
    tape.require_end()
    return total


def _members(tape: _Tape) -> Iterator[_Member]:
    """Return the files and folders; each one's content has to be read before the next one is asked for."""
    path, size_bytes = "", None
    for _ in range(_HEADERS_EACH * MAX_TREE_ENTRIES):
        block = tape.read(_BLOCK)
        if block.count(0) == _BLOCK:
            return
        header = _header(block)
        if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            records = _records(tape.read_record(header))
            path = records.get("path", path)
            size_bytes = _number(records["size"]) if "size" in records else size_bytes
        elif header.type == tarfile.XGLTYPE:
            tape.read_record(header)  # a comment that is meant for all entries
        elif header.type == tarfile.GNUTYPE_LONGNAME:
            path = tape.read_record(header).rstrip(b"\0").decode(errors="surrogateescape")
        else:
            member = _checked(header, path or header.name, header.size if size_bytes is None else size_bytes)
            if member is not None:
                yield member
            path, size_bytes = "", None
    raise ArtifactRefused(f"the archive has more than {_HEADERS_EACH * MAX_TREE_ENTRIES} headers", hint="pack it again")


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise ArtifactRefused(f"the archive is not sound: {error}", hint="pack it again") from None
    if header.size < 0:
        raise ArtifactRefused(f"{_shown(header.name)} has a negative size")
    return header


def _records(content: bytes) -> dict[str, str]:
    """Return extended header records, each `length key=value` and a line end, the length counting all of it."""
    records, start, end = {}, 0, len(content.rstrip(b"\0"))
    while start < end:
        digits, _, _ = content[start : start + _MAX_DIGITS].partition(b" ")
        stop = start + _number(digits.decode(errors="replace"))
        record = content[start + len(digits) + 1 : stop]
        key, equals, value = record.partition(b"=")
        start, is_whole = stop, stop <= end
        if not (equals and is_whole and record.endswith(b"\n")):
            raise ArtifactRefused("the archive has a broken extended header", hint="pack it again")
        records[key.decode(errors="replace")] = value[:-1].decode(errors="surrogateescape")
    if any(key.startswith("GNU.sparse.") for key in records):
        raise ArtifactRefused(f"{_shown(records.get('path', ''))} is a sparse file", hint="pack it without --sparse")
    return records


def _number(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < len(str(1 << 63))):
        raise ArtifactRefused("the archive has a broken extended header", hint="pack it again")
    return int(digits)


def _checked(header: tarfile.TarInfo, path: str, size_bytes: int) -> _Member | None:
    """Return the entry if it keeps all rules; None for the top folder itself."""
    is_folder = header.type == tarfile.DIRTYPE
    if not is_folder and header.type not in _FILES:
        kind = _KINDS.get(header.type, f"of the unknown kind {header.type!r}")
        raise ArtifactRefused(f"{_shown(path)} is {kind}", hint="only files and folders are unpacked")
    plain = path.removesuffix("/") if is_folder else path
    while plain.startswith("./"):
        plain = plain.removeprefix("./")
    if is_folder and plain in (".", ""):
        return None
    fault = path_fault(plain)
    if not fault and plain.count("/") >= MAX_TREE_DEPTH:
        fault = f"lies more than {MAX_TREE_DEPTH} folders deep"
    if not fault and is_folder and size_bytes:
        fault = "is a folder with content"
    if fault:
        raise ArtifactRefused(f"{_shown(path)} {fault}", hint="pack the folder with relative, printable names")
    return _Member(path=plain, is_folder=is_folder, is_executable=bool(header.mode & 0o100), size_bytes=size_bytes)


def _note(member: _Member, known: dict[bytes, bytes], target: Path) -> list[str]:
    """Return what of an entry's path is new, from the top; paths are known by digests, so that long ones take no more.

    No two may be one where case, or the way a letter is composed, does not count.
    """
    new, path, is_folder = [], member.path, member.is_folder
    while path:
        mine = _digest(f"{path}/" if is_folder else path)
        other = known.setdefault(_digest(fold_path(path)), mine)
        if other != mine:
            raise _refused(path, _find(target, path))
        if other is not mine:
            break
        new.append(path)
        path, is_folder = path.rpartition("/")[0], True
    return new[::-1]


def _digest(path: str) -> bytes:
    return blake2b(path.encode(), digest_size=16).digest()


def _find(target: Path, path: str) -> str:
    """Return how the names of a path are written that was unpacked before, maybe in another case."""
    found = target
    for part in path.split("/"):
        found = next((child for child in found.iterdir() if fold_path(child.name) == fold_path(part)), found / part)
    return found.relative_to(target).as_posix()


def _refused(path: str, other: str) -> ArtifactRefused:
    if path == other:
        return ArtifactRefused(f"{_shown(path)} is a file and a folder", hint="pack it again")
    return ArtifactRefused(
        f"{_shown(path)} and {_shown(other)} differ in case alone",
        hint="rename one of them, or send a .tar that the experiment unpacks itself",
    )


def _make_folders(target: Path, paths: list[str]) -> None:
    for path in paths:
        (target / path).mkdir()
        (target / path).chmod(0o755)  # whatever this process's mask is: the container is another user


def _write(path: Path, member: _Member, tape: _Tape, *, mask: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        os.fchmod(descriptor, mask & (0o755 if member.is_executable else 0o644))
        for piece in tape.pieces(member.size_bytes):
            left = memoryview(piece)
            while left:
                left = left[file.write(left) :]


def _shown(path: str) -> str:
    """Return a path as it can be printed."""
    return repr(path)[:200]
