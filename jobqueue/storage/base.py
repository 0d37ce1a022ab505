"""Where artifacts live: the port, and the value that passes through it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal, Protocol

from jobqueue.artifacts import path_fault
from jobqueue.errors import ArtifactRefused, InvalidSetting

MAX_KEY_BYTES: Final = 1024
# In the place of a store's URL: a clerk grants.
GRANTED: Final = "granted:"
PROBE: Final = "doctor/written-once"


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object: its key and size."""

    key: str
    size_bytes: int


class Readable(Protocol):
    """What content can be read from, by key; raises as `Store.get` does."""

    def get(self, key: str) -> Iterator[bytes]:
        """Return the content in pieces of bounded size."""
        ...


class Store(Protocol):
    """Objects by key. Keys are relative, `/`-separated. Safe in threads.

    Every method raises `StoreUnavailable` when the store does not answer or answers with a server error or a refusal of
    credentials; reads raise `NotFound` for an unknown key. Transient errors have been retried a few times before.
    A key that `check_key` refuses raises `ArtifactRefused`; where a clerk grants, so does one that is not granted, and
    an attempt that has lost its lease meets `Superseded`.
    """

    def put(self, key: str, source: bytes | Path) -> None:
        """Write an object whole or not at all, replacing it; a path is streamed with bounded memory."""
        ...

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Write an object only if there is none, atomically. Returns whether it was written."""
        ...

    def get(self, key: str) -> Iterator[bytes]:
        """Return the content in pieces of bounded size."""
        ...

    def size(self, key: str) -> int | None:
        """Return the size in bytes, or None when there is no such object."""
        ...

    def list(self, prefix: str, *, after: str = "") -> Iterator[StoredObject]:
        """Return the objects whose key begins with `prefix`, sorted by key; only those after a key, if one is given."""
        ...

    def presign(self, key: str, *, method: Literal["GET", "PUT"], expires: timedelta) -> str:
        """Return a URL that gives this one right for a while.

        Raises:
            StoreUnavailable: this kind of store has no such URLs.
        """
        ...


def read_whole(store: Readable, key: str, *, at_most: int) -> bytes:
    """Return the content of an object that is to be small, whatever somebody has put in its place.

    Raises:
        ArtifactRefused: it is longer than so many bytes.
    """
    content = bytearray()
    for piece in store.get(key):
        content += piece
        if len(content) > at_most:
            raise ArtifactRefused(f"{key} is longer than the {at_most} bytes that it can have")
    return bytes(content)


def check_store(store: Store) -> None:
    """Return when the store answers and writes an object only once, on which every result rests.

    Raises:
        StoreUnavailable: it does not answer.
        InvalidSetting: it overwrites what must be written once; not every S3 server honours If-None-Match.
    """
    store.put_if_absent(PROBE, b"")
    if store.put_if_absent(PROBE, b""):
        raise InvalidSetting(
            "the store overwrites an object that must be written once: two results of one experiment could be mixed",
            hint="use an S3 server that honours If-None-Match: *, or a folder",
        )


def check_key(key: str) -> str:
    """Return `key` if every kind of store can hold it under exactly this name.

    Raises:
        ArtifactRefused: it cannot; the message says why.
    """
    fault = path_fault(key)
    if not fault and len(key.encode()) > MAX_KEY_BYTES:
        fault = f"has more than {MAX_KEY_BYTES} bytes"
    if fault:
        raise ArtifactRefused(f"not a storage key: {key[:MAX_KEY_BYTES]!r} {fault}", hint="rename the file")
    return key
