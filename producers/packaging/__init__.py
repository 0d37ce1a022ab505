"""Folders and files as artifacts: packed once for one content, uploaded only if the store does not have them."""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from heapq import nlargest
from pathlib import Path
from typing import BinaryIO, Final

from jobqueue.artifacts import ARCHIVE_SUFFIX, Artifact, input_key, workspace_key
from jobqueue.errors import InvalidSpec, Problem
from jobqueue.quantities import describe_size
from jobqueue.storage import STORE_SCHEME
from jobqueue.storage.base import Store
from producers.packaging.archive import Packed, opened_unchanged, write_archive
from producers.packaging.scanning import Entry, Scan, describe_file, scan
from producers.packaging.weighing import name_largest

_WORKSPACE: Final = "workspace"
_LARGE_BYTES: Final = 100 * 10**6
_PIECE_BYTES: Final = 1 << 20
# A file that was written within the tick of its clock can change again without any sign of it.
_SETTLED_NS: Final = 2 * 10**9
_REMEMBERED: Final = 16

_packed: dict[str, Packed] = {}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What there is to know of a file or folder before any of it is packed.

    Attributes:
        problems: all that keeps it from being uploaded; nothing when it can be.
        size_bytes: what its files come to.
        largest: the folders in it that are large, as people read them; empty for a file.
        notes: what its owner should know.
    """

    problems: tuple[Problem, ...] = ()
    size_bytes: int = 0
    largest: str = ""
    notes: tuple[str, ...] = ()


def check_workspace(folder: Path) -> Checked:
    """Return what there is to know of a workspace."""
    try:
        found = scan(folder, field=_WORKSPACE, honours_ignores=True)
    except InvalidSpec as error:
        return Checked(problems=error.problems)
    return replace(_weigh(found), notes=tuple(_warn_of_size(found)))


def check_input(path: Path, *, field: str) -> Checked:
    """Return what there is to know of a file or folder that is to be an input."""
    try:
        if path.is_dir():
            return _weigh(scan(path, field=field, honours_ignores=False))
        return Checked(size_bytes=describe_file(path, field=field).size_bytes)
    except InvalidSpec as error:
        return Checked(problems=error.problems)
    except OSError as error:
        message = f"cannot be read: {error.strerror}: {str(path)!r:.80}"
        return Checked(problems=(Problem(path=field, message=message),))


def _weigh(found: Scan) -> Checked:
    largest = name_largest(((entry.path, entry.size_bytes) for entry in found.entries), write=describe_size)
    return Checked(problems=tuple(found.problems), size_bytes=found.size_bytes, largest=largest)


def _warn_of_size(found: Scan) -> Iterator[str]:
    if found.size_bytes > _LARGE_BYTES:
        largest = nlargest(3, found.entries, key=lambda entry: entry.size_bytes)
        files = ", ".join(f"{entry.path} ({describe_size(entry.size_bytes)})" for entry in largest)
        size = describe_size(found.size_bytes)
        yield f"the workspace has {size}, which takes a while; the largest files are {files} (pass data as inputs=)"


def pack_workspace(folder: Path, store: Store) -> tuple[Artifact, list[str]]:
    """Return a folder as an artifact in the store, and what its owner should know.

    What `.jobqueueignore` and `.gitignore` name, what tools make (`.git`, `.venv`, ...) and what looks like a secret is
    left out. Links inside the folder are packed as what they lead to.

    Raises:
        InvalidSpec: the folder is missing, has names or files that cannot be packed, or changed meanwhile.
        StoreUnavailable: the store does not answer.
    """
    found = _scanned(folder, field=_WORKSPACE, honours_ignores=True)
    return _pack(found, store), found.warnings


def upload_input(path: Path, store: Store, *, field: str = "inputs") -> tuple[Artifact, list[str]]:
    """Return a file or folder of this machine as an artifact in the store, and what its owner should know.

    A folder travels whole but for what looks like a secret: else ignore files have no say. A `.tar.zst` is unpacked on
    the node, as a folder is.

    Args:
        path: of the file or folder.
        store: the project's own.
        field: of the spec, for the problems.

    Raises:
        InvalidSpec: there is no such file or folder, it cannot be read, or it changed meanwhile.
        StoreUnavailable: the store does not answer.
    """
    path = path.expanduser()
    if path.is_dir():
        found = _scanned(path, field=field, honours_ignores=False)
        return _pack(found, store), found.warnings
    entry = describe_file(path, field=field)
    with opened_unchanged(entry, field=field) as content:
        sha256 = _digest(content)
    key = input_key(sha256, tree=path.name.endswith(ARCHIVE_SUFFIX))
    if store.size(key) != entry.size_bytes:
        _upload(entry, store, key=key, field=field)
    return Artifact(uri=STORE_SCHEME + key, sha256=sha256, size_bytes=entry.size_bytes), []


def _scanned(folder: Path, *, field: str, honours_ignores: bool) -> Scan:
    found = scan(folder, field=field, honours_ignores=honours_ignores)
    if found.problems:
        raise InvalidSpec(found.problems)
    return found


def _pack(found: Scan, store: Store) -> Artifact:
    """Pack what was found unless that was done before, and upload it unless it is there."""
    listing = _listing(found.entries)
    packed = _packed.get(listing)
    if packed is None or store.size(_key(found, packed)) != packed.size_bytes:
        with tempfile.NamedTemporaryFile(suffix=ARCHIVE_SUFFIX, buffering=0) as file:
            packed = write_archive(found.entries, file, field=found.field)
            if store.size(_key(found, packed)) != packed.size_bytes:
                store.put(_key(found, packed), Path(file.name))
        _remember(listing, packed, found.entries)
    return Artifact(
        uri=STORE_SCHEME + _key(found, packed),
        sha256=packed.sha256,
        size_bytes=packed.size_bytes,
        unpacked_bytes=found.size_bytes,
    )


def _key(found: Scan, packed: Packed) -> str:
    return workspace_key(packed.sha256) if found.field == _WORKSPACE else input_key(packed.sha256, tree=True)


def _listing(entries: list[Entry]) -> str:
    """Return what changes when any of the files does, without reading them."""
    digest = hashlib.sha256()
    for entry in entries:
        line = f"{entry.path}\0{entry.source}\0{entry.is_folder}{entry.identity}\0"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _remember(listing: str, packed: Packed, entries: list[Entry]) -> None:
    newest = max((entry.modified_ns for entry in entries if not entry.is_folder), default=0)
    if time.time_ns() - newest < _SETTLED_NS:
        return
    while len(_packed) >= _REMEMBERED:
        _packed.pop(next(iter(_packed)), None)
    _packed[listing] = packed


def _digest(content: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := content.read(_PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _upload(entry: Entry, store: Store, *, key: str, field: str) -> None:
    """Upload a file that may be too large to be copied first."""
    try:
        with opened_unchanged(entry, field=field):
            store.put(key, entry.source)
    except InvalidSpec:
        # It changed on the way: nobody may find other content under that digest.
        store.put(key, b"")
        raise
