"""A stream of an attempt's output, put together from the store's chunks and the registry's live pieces.

Both carry the offset of their first byte, so a reader only has to know how far it is: what lies before that is
skipped, what begins there is read, and what begins after it (a live piece was dropped) waits until the store has the
bytes between. The store alone is complete, and is what is read once the experiment is over.
"""

import codecs
import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from jobqueue.artifacts import log_prefix
from jobqueue.errors import InvalidSpec, Problem, RegistryUnavailable, StoreUnavailable
from jobqueue.printable import terminal_lines
from jobqueue.registry.base import LiveLogs, Record
from jobqueue.storage.base import Store
from producers.connections import Connections
from producers.ending import find_prefix
from producers.timeline import explain

STREAMS: Final = ("stdout", "stderr")
_SHORTEST: Final = timedelta(milliseconds=50)
_LONGEST: Final = timedelta(seconds=1)
_STORE_EVERY: Final = timedelta(seconds=1)
_MAX_LINE_CHARACTERS: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class LogSource:
    """Where one experiment's output is read.

    Attributes:
        look: returns the record as of now; waits out a short outage by itself.
    """

    store: Store
    live: LiveLogs
    look: Callable[[], Record]


def open_source(connections: Connections, *, look: Callable[[], Record], stream: str) -> LogSource:
    """Return where the output is read of the experiment that `look` looks at.

    Raises:
        InvalidSpec: there is no such stream.
    """
    if stream not in STREAMS:
        message = f"there is no {stream!r:.80} (use one of {', '.join(STREAMS)})"
        raise InvalidSpec([Problem(path="stream", message=message)])
    return LogSource(store=connections.store, live=connections.registry.live_logs, look=look)


class _Lines:
    """Bytes in, whole lines out; of a line without an end, a piece at a time."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._partial = ""

    def feed(self, data: bytes) -> Iterator[str]:
        *lines, self._partial = (self._partial + self._decoder.decode(data)).split("\n")
        for line in lines:
            yield line.removesuffix("\r")
        if len(self._partial) > _MAX_LINE_CHARACTERS:
            yield self._partial
            self._partial = ""

    def flush(self) -> Iterator[str]:
        rest, self._partial = self._partial + self._decoder.decode(b"", final=True), ""
        self._decoder.reset()
        if rest:
            yield rest


class _AttemptReader:
    """Reads one stream of one attempt forward; `offset` is how far it has come."""

    def __init__(self, source: LogSource, record: Record, *, prefix: str, stream: str) -> None:
        self.prefix = prefix
        self._experiment_id, self._attempt = record.submission.id, record.attempt
        self._source, self._stream = source, stream
        self._offset = 0
        self._cursor = ""
        self._has_gap = True
        self._store_read_at = float("-inf")

    def read_stored(self, *, over_gaps: bool) -> Iterator[bytes]:
        """Return what the store has beyond the offset, up to the first gap unless `over_gaps`."""
        self._store_read_at = time.monotonic()
        for chunk in self._source.store.list(log_prefix(self.prefix, self._stream)):
            name = chunk.key.rsplit("/", 1)[-1]
            if not name.isdecimal():
                continue  # a node may write any name there
            start = int(name)
            if start > self._offset and not over_gaps:
                return
            if start + chunk.size_bytes > self._offset:
                yield from self._read_chunk(chunk.key, start)

    def _read_chunk(self, key: str, start: int) -> Iterator[bytes]:
        for data in self._source.store.get(key):
            yield from self._take(data, start)
            start += len(data)

    def read_new(self) -> Iterator[bytes]:
        """Return what is newest: live, and from the store where live pieces are missing."""
        if self._has_gap and time.monotonic() - self._store_read_at >= _STORE_EVERY.total_seconds():
            with contextlib.suppress(StoreUnavailable):
                yield from self.read_stored(over_gaps=False)
        pieces = []
        with contextlib.suppress(RegistryUnavailable):
            pieces = self._source.live.read(self._experiment_id, self._stream, after=self._cursor)
        self._has_gap = False
        for piece in pieces:
            if piece.attempt == self._attempt and piece.offset > self._offset:
                self._has_gap = True
                return
            self._cursor = piece.cursor
            if piece.attempt == self._attempt:
                yield from self._take(piece.data, piece.offset)

    def _take(self, data: bytes, start: int) -> Iterator[bytes]:
        """Return the part of `data`, which begins at offset `start`, that has not been read."""
        fresh = data[max(0, self._offset - start) :]
        if fresh:
            self._offset = start + len(data)
            yield fresh


def read_log(source: LogSource, *, stream: str) -> Iterator[str]:
    """Return the lines of one stream that there are now, of the newest attempt or of the one that committed."""
    record = source.look()
    if not record.attempt:
        return
    lines = _Lines()
    reader = _open(source, record, stream)
    parts = [reader.read_stored(over_gaps=record.state.is_final)]
    if not record.state.is_final:
        parts.append(reader.read_new())
    for part in parts:
        for data in part:
            yield from lines.feed(data)
    yield from lines.flush()


def follow_log(source: LogSource, *, stream: str) -> Iterator[str | Record]:
    """Return the lines of one stream as they come, until the experiment is over, and between them each new record.

    A new attempt begins at its first line again. A registry that does not answer for a while is waited for.
    """
    lines, pause = _Lines(), _SHORTEST
    reader: _AttemptReader | None = None
    before: Record | None = None
    while not (record := source.look()).state.is_final:
        if record != before:
            yield record
            before = record
        reader = yield from _turn(source, record, stream, reader=reader, lines=lines)
        is_quiet = True
        for data in reader.read_new() if reader else ():
            is_quiet = False
            yield from lines.feed(data)
        pause = min(pause * 2, _LONGEST) if is_quiet else _SHORTEST
        time.sleep(pause.total_seconds())
    reader = yield from _turn(source, record, stream, reader=reader, lines=lines)
    yield from _end(reader, lines)
    yield record


def _turn(
    source: LogSource, record: Record, stream: str, *, reader: _AttemptReader | None, lines: _Lines
) -> Generator[str, None, _AttemptReader | None]:
    """Go on to the attempt that counts now; what an earlier one has left in the store comes first."""
    if not record.attempt:
        return None
    prefix = find_prefix(source.store, record)
    if reader and reader.prefix == prefix:
        return reader
    yield from _end(reader, lines)
    return _AttemptReader(source, record, prefix=prefix, stream=stream)


def _end(reader: _AttemptReader | None, lines: _Lines) -> Iterator[str]:
    """Return what an attempt that is over has left in the store."""
    for data in reader.read_stored(over_gaps=True) if reader else ():
        yield from lines.feed(data)
    yield from lines.flush()


def _open(source: LogSource, record: Record, stream: str) -> _AttemptReader:
    return _AttemptReader(source, record, prefix=find_prefix(source.store, record), stream=stream)


def print_log(source: LogSource, *, stream: str) -> None:
    """Print lines as they come, and between them, in brackets, where the experiment is; none drives a terminal."""
    shown = ""
    for item in follow_log(source, stream=stream):
        if isinstance(item, str):
            print(*(terminal_lines(item) if sys.stdout.isatty() else [item]), sep="\n", flush=True)  # noqa: T201 - what it is for
        elif (sentence := explain(item)) != shown:
            print(f"[{sentence}]", flush=True)  # noqa: T201
            shown = sentence
