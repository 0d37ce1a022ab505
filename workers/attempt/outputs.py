"""What an attempt leaves behind: collected from a folder that a stranger filled, and put into the store.

A path is opened one name at a time, never through a link and never waiting for a pipe's other end; what is not a
regular file, or is too much, is left out and named in the manifest. Nothing here fails because of what lies
in the folder.
"""

import errno
import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from jobqueue.artifacts import MAX_TREE_DEPTH, MAX_TREE_ENTRIES, Manifest, OutputFile, output_key, path_fault
from jobqueue.errors import ArtifactRefused, StoreUnavailable
from jobqueue.quantities import describe_size
from jobqueue.spec import DEFAULT_OUTPUTS, ExperimentSpec
from jobqueue.storage.base import Store, check_key
from jobqueue.storage.manifests import save_manifest
from workers.attempt.planning import PROGRESS_FILE

_log = logging.getLogger(__name__)

_NODES_OWN: Final = PROGRESS_FILE.partition("/")[0]
RESULT_FILE: Final = "outputs/result.json"
_UPLOADS_AT_ONCE: Final = 4
_PIECE_BYTES: Final = 1 << 20
# Smaller files are read once, into memory; a larger one is read twice, for its digest and for the store.
_SMALL_BYTES: Final = 1 << 20
_LISTED: Final = 1000
_SPARSE_RATIO: Final = 200
_DISK_BLOCK: Final = 512  # of st_blocks, whatever the file system uses

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def stage_out(spec: ExperimentSpec, workspace: Path, *, store: Store, prefix: str) -> Manifest:
    """Put the outputs of an attempt into the store, then their manifest; returns the manifest.

    The container has to be stopped. To repeat it is harmless.

    Args:
        spec: names the files and folders to keep, relative to the workspace.
        workspace: as the container saw it.
        store: the project's own.
        prefix: of the attempt in the store.

    Raises:
        StoreUnavailable: the store does not answer; there is no manifest then.
    """
    root = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = _Found(left_bytes=spec.disk, left_entries=MAX_TREE_ENTRIES)
        for path in _wanted(spec):
            _collect(root, path, found, is_required=path.rstrip("/") not in (DEFAULT_OUTPUTS.rstrip("/"), RESULT_FILE))
        files = _upload(root, sorted(found.files), store=store, prefix=prefix, left_out=found.left_out)
    finally:
        os.close(root)
    manifest = Manifest(files=tuple(files), left_out=_bounded(found.left_out))
    save_manifest(store, prefix, manifest=manifest)
    _log.info("outputs.stored", extra={"prefix": prefix, "files": len(files), "left_out": len(found.left_out)})
    return manifest


@dataclass(kw_only=True)
class _Found:
    """What is to be uploaded, and what is not, with the reason; it grows while walking.

    Attributes:
        left_bytes: what the files that are still to come may have.
        left_entries: how many names are still looked at.
    """

    files: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)
    left_bytes: int
    left_entries: int

    def leave(self, path: str, reason: str) -> None:
        self.left_out.append(f"{_shown(path)}: {reason}")


def _wanted(spec: ExperimentSpec) -> Iterator[str]:
    yield from dict.fromkeys((*spec.outputs, RESULT_FILE))


def _collect(root: int, wanted: str, found: _Found, *, is_required: bool) -> None:
    """Find the files of one wanted path; one that is not there is named if it was asked for."""
    path = "" if wanted in (".", "./") else wanted.rstrip("/")
    try:
        with _opened(root, path) as descriptor:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                _walk(descriptor, path, found)
            else:
                _consider(descriptor, path, found)
    except FileNotFoundError:
        if is_required:
            found.leave(path, "the experiment did not write it")
    except OSError as error:
        found.leave(path, _reason(error))


def _walk(folder: int, path: str, found: _Found) -> None:
    if path.count("/") >= MAX_TREE_DEPTH:
        found.leave(path, f"it lies more than {MAX_TREE_DEPTH} folders deep")
        return
    with os.scandir(folder) as listing:
        # Bounded before it is sorted: a folder may have millions of names.
        names = sorted(entry.name for entry in islice(listing, found.left_entries + 1))
    for name in names:
        if not path and name == _NODES_OWN:
            continue
        if not found.left_entries:
            found.leave(path, f"there are more than {MAX_TREE_ENTRIES} files and folders, the rest is left out")
            return
        found.left_entries -= 1
        below = f"{path}/{name}" if path else name
        try:
            with _opened(folder, name) as descriptor:
                if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    _walk(descriptor, below, found)
                else:
                    _consider(descriptor, below, found)
        except OSError as error:
            found.leave(below, _reason(error))


def _consider(descriptor: int, path: str, found: _Found) -> None:
    """Add one open file, unless it must stay."""
    status = os.fstat(descriptor)
    if path in found.files:
        return
    if not stat.S_ISREG(status.st_mode):
        found.leave(path, "it is no file or folder")
    elif fault := path_fault(path):
        found.leave(path, f"its path {fault}")
    elif _is_bomb(descriptor, status):
        found.leave(path, f"it says it has {describe_size(status.st_size)}, but almost all of it is a hole")
    elif status.st_size > found.left_bytes:
        found.leave(path, f"with its {describe_size(status.st_size)} the outputs are larger than disk=")
    else:
        found.left_bytes -= status.st_size
        found.files.add(path)


def _is_bomb(descriptor: int, status: os.stat_result) -> bool:
    if not _looks_hollow(status):
        return False
    # Some file systems count blocks only once they are written.
    os.fsync(descriptor)
    return _looks_hollow(os.fstat(descriptor))


def _looks_hollow(status: os.stat_result) -> bool:
    return status.st_size > max(_SMALL_BYTES, _SPARSE_RATIO * _DISK_BLOCK * status.st_blocks)


def _upload(root: int, paths: list[str], *, store: Store, prefix: str, left_out: list[str]) -> list[OutputFile]:
    def upload(path: str) -> OutputFile | str:
        try:
            key = check_key(output_key(prefix, path))
            with _opened(root, path) as descriptor:
                return _upload_one(descriptor, path, store=store, key=key)
        except StoreUnavailable:
            raise
        except ArtifactRefused as error:
            return f"{_shown(path)}: {error.message}"
        except OSError as error:
            return f"{_shown(path)}: {_reason(error)}"

    with ThreadPoolExecutor(_UPLOADS_AT_ONCE, thread_name_prefix="outputs") as pool:
        results = [pool.submit(upload, path) for path in paths]
        try:
            done = [result.result() for result in results]
        finally:
            pool.shutdown(cancel_futures=True)
    left_out += [result for result in done if isinstance(result, str)]
    return [result for result in done if isinstance(result, OutputFile)]


def _upload_one(descriptor: int, path: str, *, store: Store, key: str) -> OutputFile:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactRefused("it is no file any more")
    with os.fdopen(os.dup(descriptor), "rb") as file:
        if status.st_size <= _SMALL_BYTES:
            content = file.read(_SMALL_BYTES)
            store.put(key, content)
            return OutputFile(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        digest = hashlib.sha256()
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    store.put(key, Path(f"/proc/self/fd/{descriptor}"))
    return OutputFile(path=path, size_bytes=status.st_size, sha256=digest.hexdigest())


@contextmanager
def _opened(root: int, path: str) -> Iterator[int]:
    """Open a path below a folder, one name at a time, following nothing; an empty path is the folder itself."""
    descriptor = os.dup(root)
    try:
        for name in path.split("/") if path else ():
            below = os.open(name, _READ, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a link, or lies behind one"
    if error.errno in (errno.ENXIO, errno.ENODEV):
        return "it is no file or folder"
    return f"it cannot be read: {error.strerror}"


def _bounded(left_out: list[str]) -> tuple[str, ...]:
    left_out = list(dict.fromkeys(left_out))
    more = len(left_out) - _LISTED
    return tuple(left_out[:_LISTED]) + ((f"and {more} more",) if more > 0 else ())


def _shown(path: str) -> str:
    """Return a path as it can be printed: an experiment chose it."""
    shown = path.encode("utf-8", "backslashreplace").decode()
    return shown[:300] if shown.isprintable() else repr(shown)[1:-1][:300]
