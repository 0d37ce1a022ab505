"""A store in a folder: each object is a file, written beside, made durable, then given its name.

The library's own local store neither syncs to disk nor keeps names such as `model#1`, and its errors lose their number;
a marker that is the truth about an end must survive a power cut whole.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

from jobqueue.errors import NotFound, StoreUnavailable
from jobqueue.storage.base import StoredObject, check_key

_INCOMING: Final = ".incoming"
_PIECE_BYTES: Final = 1 << 20


def open_folder(root: Path) -> "FolderStore":
    """Return the store in `root`, which is made for this user alone if it is not there.

    Raises:
        StoreUnavailable: it cannot be made, or is not a folder.
    """
    with _translated(str(root)):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return FolderStore(root)


class FolderStore:
    """Objects as files below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, source: bytes | Path) -> None:
        """Write a file whole, replacing it."""
        target = self._path(key)
        with self._written(source) as written, _translated(key):
            _make_folders(target.parent, self._root)
            written.replace(target)
            _sync(target.parent)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Write a file if there is none; giving it its name as a hard link is what makes it atomic."""
        target = self._path(key)
        with self._written(content) as written, _translated(key):
            _make_folders(target.parent, self._root)
            try:
                target.hardlink_to(written)
            except FileExistsError:
                return False
            _sync(target.parent)
            return True

    def get(self, key: str) -> Iterator[bytes]:
        """Return the file's content in pieces."""
        path = self._path(key)
        with self._reading(key):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise IsADirectoryError
        return _pieces(descriptor, key)

    def size(self, key: str) -> int | None:
        """Return the file's size."""
        try:
            with self._reading(key):
                status = self._path(key).stat()
        except NotFound:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str, *, after: str = "") -> Iterator[StoredObject]:
        """Return the files whose path begins with `prefix`, sorted."""
        start = self._root / prefix.rpartition("/")[0]
        found = []
        with _translated(prefix):
            for folder, folders, names in os.walk(start, onerror=_raise_unless_gone):
                if Path(folder) == self._root:
                    folders[:] = [name for name in folders if name != _INCOMING]
                keys = (str((Path(folder) / name).relative_to(self._root)) for name in names)
                found += [key for key in keys if key.startswith(prefix) and key > after]
        sizes = ((key, self.size(key)) for key in sorted(found))
        return (StoredObject(key=key, size_bytes=size) for key, size in sizes if size is not None)

    def presign(self, key: str, *, method: Literal["GET", "PUT"], expires: timedelta) -> str:
        """Refuse: a folder has no such URLs."""
        del method, expires
        raise StoreUnavailable(f"a folder has no URLs to hand out ({key})", hint="use an s3:// store")

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            with _translated(key):
                yield
        except StoreUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError | IsADirectoryError):
                if not self._root.is_dir():
                    raise StoreUnavailable("the store's folder is gone", hint="is it mounted?") from None
                raise NotFound(f"the store has no {key}") from None
            raise

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _written(self, source: bytes | Path) -> Iterator[Path]:
        """Yield a durable file with the content, on the same file system; what is left of it goes."""
        folder = self._root / _INCOMING
        with _translated(_INCOMING):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as target:
                _fill(target, source)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


def _fill(target: Any, source: bytes | Path) -> None:
    if isinstance(source, bytes):
        with _translated(_INCOMING):
            target.write(source)
    else:
        # Not translated as a whole: a source that cannot be read is the caller's trouble, not the store's.
        with source.open("rb") as content:
            while piece := content.read(_PIECE_BYTES):
                with _translated(_INCOMING):
                    target.write(piece)
    with _translated(_INCOMING):
        target.flush()
        os.fsync(target.fileno())


def _pieces(descriptor: int, key: str) -> Iterator[bytes]:
    with os.fdopen(descriptor, "rb", buffering=0) as content, _translated(key):
        while piece := content.read(_PIECE_BYTES):
            yield piece


def _make_folders(folder: Path, root: Path) -> None:
    """Make the missing folders, and make that durable: a file in a folder that is lost is lost too."""
    if folder.is_dir():
        return
    if folder != root:
        _make_folders(folder.parent, root)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except StoreUnavailable:
        raise
    except OSError as error:
        raise StoreUnavailable(f"the store's folder cannot be used for {what}: {error.strerror or error}") from error
