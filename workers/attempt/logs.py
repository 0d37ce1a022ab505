"""Where a container's output goes: whole to the store, its newest part to the registry, its end to the report.

A chunk's name is the offset of its first byte, and live pieces carry their offset too, so that a reader can go from
one to the other without losing or doubling a byte. Memory is bounded by the chunk size; a store that is slow or away
makes the container wait, which is not counted as its silence.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from jobqueue.artifacts import log_key
from jobqueue.errors import ArtifactRefused, JobqueueError, StoreUnavailable, Superseded
from jobqueue.registry.base import Lease, LiveLogs
from jobqueue.storage.base import Store
from workers.attempt.log_resume import Skip, StoredLog
from workers.attempt.progress import MAX_PROGRESS_BYTES, PROGRESS_MARK, parse_progress_line
from workers.attempt.redaction import Redactor
from workers.rounds import Rounds

log = logging.getLogger(__name__)

STREAMS: Final = ("stdout", "stderr")
CHUNK_BYTES: Final = 4 * 2**20
CHUNK_EVERY: Final = timedelta(seconds=5)
LIVE_EVERY: Final = timedelta(milliseconds=200)
STORE_AGAIN: Final = timedelta(milliseconds=500)
LIVE_BYTES: Final = 64 * 1024
LAST_LINES: Final = 20
LAST_LINE_CHARACTERS: Final = 500
_GPU_OUT_OF_MEMORY = (b"CUDA out of memory", b"CUDA_ERROR_OUT_OF_MEMORY", b"OutOfMemoryError: CUDA")
_TELLING: Final = (PROGRESS_MARK, *_GPU_OUT_OF_MEMORY)


class _Lines:
    """Finds lines in a stream; of a line that is too long only the beginning is kept."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self._on_line = on_line
        self._partial = bytearray()

    def feed(self, data: bytes) -> None:
        """Take some bytes; of many lines that tell nothing only the last ones are looked at, which are all we keep."""
        first, *rest = data.split(b"\n")
        self._extend(first)
        if len(rest) > LAST_LINES and not any(mark in data for mark in _TELLING):
            rest = [*[line for line in rest[:-1] if line.rstrip(b"\r")][-LAST_LINES:], rest[-1]]
        for piece in rest:
            self.flush()
            self._extend(piece)

    def flush(self) -> None:
        """End the line."""
        line = bytes(self._partial).rstrip(b"\r")
        self._partial.clear()
        if line:
            self._on_line(line)

    def _extend(self, piece: bytes) -> None:
        self._partial += piece[: MAX_PROGRESS_BYTES - len(self._partial)]


class _Stream:
    """One stream of one attempt: what is not yet in the store, what is not yet live."""

    def __init__(
        self, name: str, secrets: tuple[bytes, ...], on_line: Callable[[bytes], None], stored: StoredLog
    ) -> None:
        self.name = name
        self.skip = Skip(stored)
        self.redactor = Redactor(secrets)
        self.lines = _Lines(on_line)
        self.chunk = bytearray()
        self.chunk_offset = stored.size_bytes
        self.chunk_since = time.monotonic()
        self.live = bytearray()
        self.live_offset = stored.size_bytes
        self.is_arriving = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be taken before the store has taken some."""
        return len(self.chunk) >= 2 * CHUNK_BYTES

    def take(self, data: bytes) -> None:
        data = self.skip.feed(data)
        self.chunk += data
        self.live += data
        if len(self.live) > LIVE_BYTES:
            drop = len(self.live) - LIVE_BYTES
            del self.live[:drop]
            self.live_offset += drop


class LogWriter:
    """Takes the output of one container.

    Args:
        lease: whose output it is.
        store, prefix: where the chunks go: the prefix of the attempt.
        live: the registry's port.
        limit_bytes: of both streams together; past it the output is cut and `is_over_limit` is set. What the store
            refuses for good is in `refusal`, and nothing more is taken then.
        secrets: values that must not appear.
        on_progress: called with a JSON object for each progress line.
        stored: what the store has of each stream already, when an earlier worker began the log.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        store: Store,
        prefix: str,
        live: LiveLogs,
        limit_bytes: int,
        secrets: tuple[bytes, ...] = (),
        on_progress: Callable[[str], None],
        stored: Mapping[str, StoredLog] | None = None,
    ) -> None:
        self.is_over_limit = False
        self.is_gpu_out_of_memory = False
        self.refusal = ""
        self._alive_at = time.monotonic()
        self._lease, self._store, self._prefix, self._live = lease, store, prefix, live
        self._left_bytes = limit_bytes
        self.limit_bytes = limit_bytes
        self._on_progress = on_progress
        self._last_lines: deque[bytes] = deque(maxlen=LAST_LINES)
        self._streams = {
            name: _Stream(name, secrets, self._take_line, (stored or {}).get(name, StoredLog())) for name in STREAMS
        }
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._rounds = Rounds(f"logs-{lease.experiment_id}", self._tick, every=lambda: LIVE_EVERY)
        self._rounds.start()

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The end of the output, oldest first, each line bounded."""
        return tuple(line.decode(errors="replace")[:LAST_LINE_CHARACTERS] for line in self._last_lines)

    @property
    def silence_seconds(self) -> float:
        """How long nothing has come; 0 while something is being taken, however long the store lets it wait."""
        is_arriving = any(stream.is_arriving for stream in self._streams.values())
        return 0.0 if is_arriving else time.monotonic() - self._alive_at

    @property
    def is_behind(self) -> bool:
        """Whether output waits for the store."""
        return any(stream.is_arriving and stream.is_full for stream in self._streams.values())

    def mark_alive(self) -> None:
        """Note a sign of life that is no output."""
        self._alive_at = time.monotonic()

    def write(self, stream: str, data: bytes) -> None:
        """Take some output of one stream; blocks while the store is behind. What comes after `close` is left out."""
        target = self._streams[stream]
        target.is_arriving = True
        try:
            with self._lock:
                if not self._closed.is_set():
                    self._take(target, target.redactor.feed(data))
            self._wait_for_store(target)
        finally:
            self.mark_alive()
            target.is_arriving = False

    def close(self) -> None:
        """Write what is left; may be called again when the store did not take it.

        Raises:
            StoreUnavailable: the store did not take all of it, which is kept.
            Superseded: nothing of this attempt is taken any more.
        ArtifactRefused: nor of its experiment.
        """
        self._closed.set()
        self._rounds.close()
        with self._lock:
            for stream in self._streams.values():
                self._take(stream, stream.redactor.flush())
                stream.lines.flush()
            errors = [error for stream in self._streams.values() if (error := self._put_chunk(stream))]
        self._send_live()
        if errors:
            raise errors[0]

    def _wait_for_store(self, stream: _Stream) -> None:
        while stream.is_full and not self.refusal and not self._closed.wait(STORE_AGAIN.total_seconds()):
            with self._lock:
                self._put_chunk(stream)

    def _take(self, stream: _Stream, data: bytes) -> None:
        if self.is_over_limit or self.refusal or not data:
            return
        if len(data) > self._left_bytes:
            self.is_over_limit = True
            data = data[: self._left_bytes] + b"\n[log cut here: over its limit of %d bytes]\n" % self.limit_bytes
        self._left_bytes -= len(data)
        stream.take(data)
        stream.lines.feed(data)
        if len(stream.chunk) >= CHUNK_BYTES:
            self._put_chunk(stream)

    def _take_line(self, line: bytes) -> None:
        self._last_lines.append(line)
        self.is_gpu_out_of_memory |= any(mark in line for mark in _GPU_OUT_OF_MEMORY)
        progress = parse_progress_line(line)
        if progress:
            self._on_progress(progress)

    def _tick(self) -> None:
        self._send_live()
        with self._lock:
            for stream in self._streams.values():
                if time.monotonic() - stream.chunk_since >= CHUNK_EVERY.total_seconds():
                    self._put_chunk(stream)

    def _put_chunk(self, stream: _Stream) -> JobqueueError | None:
        """Store what has come since the last chunk; what the store does not take stays, and the error is returned."""
        stream.chunk_since = time.monotonic()
        if not stream.chunk:
            return None
        try:
            self._store.put(log_key(self._prefix, stream.name, stream.chunk_offset), bytes(stream.chunk))
        except (ArtifactRefused, StoreUnavailable, Superseded) as error:
            if isinstance(error, ArtifactRefused):
                self.refusal = error.message
            log.warning(
                "logs.chunk_not_stored", extra={"experiment": self._lease.experiment_id, "error": error.message}
            )
            return error
        stream.chunk_offset += len(stream.chunk)
        stream.chunk.clear()
        return None

    def _send_live(self) -> None:
        """Send what is new; the live log may lose, so a registry that does not answer costs nothing."""
        for stream in self._streams.values():
            with self._lock:
                data, offset = bytes(stream.live), stream.live_offset
                stream.live.clear()
                stream.live_offset += len(data)
            if data:
                with contextlib.suppress(JobqueueError):
                    self._live.append(self._lease, stream.name, data, offset=offset)
