"""Going on with a log that an earlier worker of the same attempt began: what is stored already is skipped.

A container that is taken over is read from the first byte that is still kept of its output. Offsets in the store count
bytes after secrets were replaced, and that is done alike each time, so skipping as many as are stored goes on exactly
where the log stopped. Only where what is kept begins later than the log, because it was bounded, this cannot be known:
then a line in the log says so, and all that is kept follows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from jobqueue.artifacts import log_prefix
from jobqueue.storage.base import Store

COMPARED_BYTES: Final = 64 * 1024
GAP: Final = b"\n[log: some output is missing or repeated here: the worker was away]\n"


@dataclass(frozen=True, kw_only=True)
class StoredLog:
    """What the store has of one stream: how many bytes, and the first of them."""

    size_bytes: int = 0
    beginning: bytes = b""


def find_stored(store: Store, prefix: str, streams: tuple[str, ...]) -> Mapping[str, StoredLog]:
    """Return what an attempt's prefix holds of each stream.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    return {stream: _find(store, prefix, stream) for stream in streams}


def _find(store: Store, prefix: str, stream: str) -> StoredLog:
    size, beginning = 0, b""
    for chunk in store.list(log_prefix(prefix, stream)):
        start = int(chunk.key.rsplit("/", 1)[-1])
        size = max(size, start + chunk.size_bytes)
        if start == 0:
            beginning = _read(store, chunk.key)
    return StoredLog(size_bytes=size, beginning=beginning)


def _read(store: Store, key: str) -> bytes:
    read = b""
    for piece in store.get(key):
        read += piece
        if len(read) >= COMPARED_BYTES:
            break
    return read[:COMPARED_BYTES]


class Skip:
    """Leaves out of a stream what is stored of it."""

    def __init__(self, stored: StoredLog) -> None:
        self._left_bytes = stored.size_bytes
        self._expected = stored.beginning

    def feed(self, data: bytes) -> bytes:
        """Return what of `data` is to be stored."""
        if not self._left_bytes:
            return data
        compared = min(len(data), len(self._expected))
        if data[:compared] != self._expected[:compared]:
            self._left_bytes = 0
            return GAP + data
        self._expected = self._expected[compared:]
        skipped = min(len(data), self._left_bytes)
        self._left_bytes -= skipped
        return data[skipped:]
