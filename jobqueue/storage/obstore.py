"""Objects in S3, or in this process's memory, through obstore.

Its runtime does not survive a fork: a call in the child would wait for ever, so it is refused there.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import MemoryStore, S3Store

from jobqueue.errors import NotFound, StoreUnavailable
from jobqueue.storage.base import StoredObject, check_key
from jobqueue.tls import hint_of, split_certificates

_PIECE_BYTES: Final = 1 << 20
_PART_BYTES: Final = 8 << 20
_MAX_PARTS: Final = 10_000
_PARTS_AT_ONCE: Final = 4
_CONFLICTS: Final = 3
_LISTED_AT_ONCE: Final = 1000
_LINE: Final = 300
# Where credentials are looked for last: the address at which a cloud tells its machines who they are.
_METADATA: Final = "169.254.169.254"

_CONNECT_TIMEOUT: Final = timedelta(seconds=3)
_ANSWER_TIMEOUT: Final = timedelta(seconds=8)
# Includes the time that a part takes to leave over a slow line.
_UPLOAD_TIMEOUT: Final = timedelta(seconds=120)
# A download has no limit as a whole, only one on its silence.
_NEVER: Final = timedelta(days=30)
_RETRIES: Final[dict[str, Any]] = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=5),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}


def open_bucket(bucket: str, *, prefix: str, endpoint: str) -> "ObjectStore":
    """Return a store in an S3 bucket, below `prefix`; nothing is asked of the server yet."""
    address, files = split_certificates(endpoint)
    trusted = {"root_certificate": Path(files.ca).read_bytes()} if files.ca else {}
    with _translated(bucket):
        small, large = (
            _make_bucket(bucket, prefix, address, {**trusted, "read_timeout": answer})
            for answer in (_ANSWER_TIMEOUT, _UPLOAD_TIMEOUT)
        )
    return ObjectStore(small, large)


def open_memory() -> "ObjectStore":
    """Return a new, empty store in memory."""
    store = MemoryStore()
    return ObjectStore(store, store)


class ObjectStore:
    """Objects that a store of the library holds: `small` answers soon, `large` has time for a part to leave."""

    def __init__(self, small: S3Store | MemoryStore, large: S3Store | MemoryStore) -> None:
        self._small = small
        self._large = large

    def put(self, key: str, source: bytes | Path) -> None:
        """Write an object; a file that is larger than a part leaves in parts, a few at once."""
        check_key(key)
        if isinstance(source, bytes):
            with _translated(key):
                obstore.put(self._small, key, source)
            return
        # Opened here, so that a file that cannot be read is not taken for a store that cannot be written.
        with source.open("rb") as content:
            part_bytes = max(_PART_BYTES, -(-os.fstat(content.fileno()).st_size // _MAX_PARTS))
            with _translated(key):
                obstore.put(self._large, key, content, chunk_size=part_bytes, max_concurrency=_PARTS_AT_ONCE)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Write an object if there is none (`If-None-Match: *`)."""
        check_key(key)
        for _ in range(_CONFLICTS):
            try:
                with _translated(key):
                    obstore.put(self._small, key, content, mode="create")
            except _Exists:
                # S3 also says so when two writers met and neither has won yet.
                if self.size(key) is not None:
                    return False
            else:
                return True
        raise StoreUnavailable(f"the store refuses {key} as written, but does not have it")

    def get(self, key: str) -> Iterator[bytes]:
        """Return the content in pieces."""
        check_key(key)
        with _translated(key):
            stream = obstore.get(self._small, key).stream(_PIECE_BYTES)
        return _pieces(stream, key)

    def size(self, key: str) -> int | None:
        """Return the object's size."""
        check_key(key)
        try:
            with _translated(key):
                return obstore.head(self._small, key)["size"]
        except NotFound:
            return None

    def list(self, prefix: str, *, after: str = "") -> Iterator[StoredObject]:
        """Return the objects that begin with `prefix`; the library itself knows only folders."""
        folder = prefix.rpartition("/")[0]
        with _translated(prefix):
            for chunk in obstore.list(self._small, folder or None, offset=after or None, chunk_size=_LISTED_AT_ONCE):
                for found in chunk:
                    if found["path"].startswith(prefix):
                        yield StoredObject(key=found["path"], size_bytes=found["size"])

    def presign(self, key: str, *, method: Literal["GET", "PUT"], expires: timedelta) -> str:
        """Return a URL signed with this process's credentials."""
        check_key(key)
        if not isinstance(self._small, S3Store):
            raise StoreUnavailable(f"memory has no URLs to hand out ({key})", hint="use an s3:// store")
        with _translated(key):
            return obstore.sign(self._small, method, key, expires)


def _make_bucket(bucket: str, prefix: str, endpoint: str, line: Mapping[str, Any]) -> S3Store:
    client: dict[str, Any] = {"connect_timeout": _CONNECT_TIMEOUT, "timeout": _NEVER, **line}
    config: dict[str, Any] = {}
    if endpoint:
        client["allow_http"] = endpoint.startswith("http://")
        config["endpoint"] = endpoint
    options: dict[str, Any] = {"client_options": client, "retry_config": _RETRIES, **config}
    return S3Store(bucket, prefix=prefix or None, **options)


def _pieces(stream: Any, key: str) -> Iterator[bytes]:
    with _translated(key):
        for chunk in stream:
            # Memory hands over an object as one chunk.
            view = memoryview(chunk)
            for start in range(0, len(view), _PIECE_BYTES):
                yield bytes(view[start : start + _PIECE_BYTES])


class _Exists(Exception):
    """There is such an object already."""


@contextmanager
def _translated(what: str) -> Iterator[None]:
    if _runtime_owner() != os.getpid():
        raise StoreUnavailable(
            "the store was used before this process was forked, and cannot be used in the child",
            hint="start the process with spawn, or use the store in the parent only",
        )
    try:
        yield
    except AlreadyExistsError:
        raise _Exists from None
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise StoreUnavailable(f"there is no such bucket ({what})", hint="create it first") from None
        raise NotFound(f"the store has no {what}") from None
    except (BaseError, OSError, ValueError) as error:
        if isinstance(error, StoreUnavailable):
            raise
        if _METADATA in str(error):
            raise StoreUnavailable(
                f"there are no credentials for the store ({what})",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
            ) from None
        first_line = str(error).partition("\n")[0][:_LINE]
        raise StoreUnavailable(f"the store failed for {what}: {first_line}", hint=hint_of(error)) from None


@cache
def _runtime_owner() -> int:
    """Return the process that used the library first; its threads live only there."""
    return os.getpid()
