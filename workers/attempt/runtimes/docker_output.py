"""The output of one container of an engine, every byte once, over restarts of the engine.

Attached before the start, it is exact and cannot outrun its reader. When the engine dies, the container goes on, and so
does the engine's bounded log of it; what was passed already is counted and skipped there. One thing is beyond us: what
a container prints while no engine is there, if it also ends before one is, the engine does not find again.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.engine import Engine, Gone
from workers.attempt.runtimes.engine_streams import Attachment, ExitWatch, read_log
from workers.attempt.runtimes.frames import split_frames

_log = logging.getLogger(__name__)

# The engine dates a line when it is complete, which may be a little after its first bytes arrived here.
_DATING_SECONDS = 1.0
_WORD_SECONDS = 5.0
_AWAY_SECONDS = 600.0
_PAUSE_SECONDS = 0.5

Sink = Callable[[str, bytes], None]


class Output:
    """What a container printed, and where its reader is in it.

    Args:
        attached, watch: where both were there before the start; else the engine's log is read.
    """

    def __init__(
        self, engine: Engine, identity: str, *, attached: Attachment | None = None, watch: ExitWatch | None = None
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._attached = attached
        self._watch = watch
        self._passed = {"stdout": 0, "stderr": 0}
        self._first_at = 0.0
        self._last_at = 0.0
        self._is_complete = False

    def follow(self, sink: Sink) -> None:
        """Pass all of it on that was not passed yet, until the container ended.

        Raises:
            RuntimeFailure: the engine has been away for minutes, or has no such container.
        """
        attached, watch = self._attached, self._watch
        if attached is not None and watch is not None:
            try:
                self._pass(split_frames(attached.blocks()), sink)
            finally:
                attached.close()
                self._attached = None
            with suppress(RuntimeFailure):
                self._is_complete |= watch.wait(_WORD_SECONDS)
        away_since = time.monotonic()
        while not self._is_complete:
            try:
                self._follow_log(sink)
                away_since = time.monotonic()
            except Gone:
                raise
            except RuntimeFailure:
                if time.monotonic() - away_since > _AWAY_SECONDS:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def close(self) -> None:
        """End a `follow` in another thread; nothing is passed on any more."""
        self._is_complete = True
        attached = self._attached
        if attached is not None:
            attached.close()

    def _follow_log(self, sink: Sink) -> None:
        with closing(ExitWatch(self._engine, self._identity, "not-running")) as watch:
            if self._last_at and not self._has_log_from_the_start():
                _log.warning("output.gap", extra={"container": self._identity})
                frames = split_frames(read_log(self._engine, self._identity, since_seconds=self._last_at))
            else:
                frames = self._skip_passed(split_frames(read_log(self._engine, self._identity)))
            self._pass(frames, sink)
            self._is_complete |= watch.wait(_WORD_SECONDS)

    def _has_log_from_the_start(self) -> bool:
        until = self._first_at + _DATING_SECONDS
        with closing(read_log(self._engine, self._identity, until_seconds=until)) as blocks:
            return any(blocks)

    def _skip_passed(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        left = dict(self._passed)
        for stream, piece in frames:
            skipped = min(left[stream], len(piece))
            left[stream] -= skipped
            if skipped < len(piece):
                yield stream, piece[skipped:]

    def _pass(self, pieces: Iterable[tuple[str, bytes]], sink: Sink) -> None:
        for stream, piece in pieces:
            sink(stream, piece)
            self._last_at = time.time()
            self._first_at = self._first_at or self._last_at
            self._passed[stream] += len(piece)
