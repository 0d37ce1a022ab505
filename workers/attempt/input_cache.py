"""The artifacts that a node keeps: up to a bound, the least recently used going first, none while an attempt needs it.

Each is a folder that is moved into its place whole: `content`, and `use`, the file that tells its size, its last use
and its holds (`workers.attempt.holds`). What arrives, and what is on its way out, lies in `incoming`, locked by the
process that is at it: what is there and not locked was left by a process that was killed, and is only ever removed.
Every worker of a machine shares the folder, and has its lock for the moment of a change, never while something arrives.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from jobqueue.errors import DiskFull
from jobqueue.quantities import describe_size
from workers.attempt.holds import Kept, choose, clear, free_bytes, hold, look, touch
from workers.attempt.trees import remove
from workers.file_locks import is_at, is_locked, locked, open_folder, try_lock

log = logging.getLogger(__name__)

CONTENT: Final = "content"
# Whoever brings something says so at least so often; who does not is not waited for.
ALIVE: Final = timedelta(seconds=1)
STALLED: Final = timedelta(seconds=60)
_USE: Final = "use"
_GOING: Final = "going-"
_POLL_SECONDS: Final = 0.05
_BLOCK_BYTES: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an attempt needs.

    Attributes:
        name: what it is kept under; empty where that is known only once it is there.
        expected_bytes: room for so much is made before it arrives.
        bring: called with an empty folder and what tells others that it goes on; writes `content` and returns the name.
        check: called now and then; what it raises ends the waiting.
    """

    name: str
    expected_bytes: int
    bring: Callable[[Path, Callable[[], None]], str]
    check: Callable[[], object] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Fill:
    """How full a cache is: all that it keeps, and of that what is held now."""

    count: int
    size_bytes: int
    held: int


@dataclass(frozen=True, kw_only=True)
class _Arriving:
    """A place in `incoming` that this process has locked."""

    folder: Path
    handle: int


@dataclass(frozen=True, kw_only=True)
class InputCache:
    """The cache in a folder, which it shares with the attempts' own.

    Attributes:
        folder: of the node.
        size_bytes: it keeps no more than that, but what is held; what is larger by itself is not kept.
        floor_bytes: with less free on the disk it keeps only what is held.
    """

    folder: Path
    size_bytes: int
    floor_bytes: int = 0

    def get(self, wanted: Wanted, place: Path) -> Path:
        """Return the content, brought if it is not there; it stays until `place` is removed.

        Args:
            wanted: what.
            place: a folder of the attempt's own; made if need be.

        Raises:
            DiskFull: there is no room, whatever would be thrown out.
            OSError: the disk does not take it. And what `wanted.bring` and `wanted.check` raise.
        """
        place.mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kept.mkdir(mode=0o700, exist_ok=True)
        found = self._take_or_begin(wanted, place)
        if isinstance(found, Path):
            return found
        try:
            pulse = _Pulse(found.folder)
            self._make_room(wanted, pulse)
            name = wanted.bring(found.folder, pulse)
            return self._settle(found, name, place, wanted.check)
        finally:
            if is_at(found.folder, found.handle):  # it was not kept
                remove(found.folder)
            os.close(found.handle)

    def trim(self) -> None:
        """Note what is in use, let go what is over the bound, and remove what killed processes have left."""
        if not self._incoming.is_dir():
            return
        with self._locked():
            for kept in self._list():
                if kept.is_held:
                    touch(self._kept / kept.name / _USE)
            left = self._let_go(missing_bytes=self.floor_bytes - free_bytes(self.folder))
        clear(left)

    def fill(self) -> Fill:
        """Return how full it is."""
        kept = list(self._list())
        size_bytes = sum(each.size_bytes for each in kept)
        return Fill(count=len(kept), size_bytes=size_bytes, held=sum(each.is_held for each in kept))

    @property
    def _kept(self) -> Path:
        return self.folder / "kept"

    @property
    def _incoming(self) -> Path:
        return self.folder / "incoming"

    def _locked(self, check: Callable[[], object] = lambda: None) -> AbstractContextManager[None]:
        return locked(self.folder / "cache.lock", check=check)

    def _take_or_begin(self, wanted: Wanted, place: Path) -> Path | _Arriving:
        """Return what is kept, or a place to bring it to; while another process brings it, wait for that."""
        name = wanted.name
        while True:
            with self._locked(wanted.check):
                found = (self._take(name, place) if name else None) or self._begin(name)
            if found:
                return found
            wanted.check()
            time.sleep(_POLL_SECONDS)
            with suppress(FileNotFoundError):
                if time.time() - (self._incoming / name).stat().st_mtime > STALLED.total_seconds():
                    log.warning("cache.not_waited_for", extra={"artifact": name})
                    name = ""

    def _take(self, name: str, place: Path) -> Path | None:
        """Hold what is kept under a name and return its content; None when it is not kept."""
        entry = self._kept / name
        if not entry.is_dir():
            return None
        content, size_bytes = entry / CONTENT, _read_size(entry)
        is_sound = content.stat().st_size == size_bytes if content.is_file() else content.is_dir()
        if size_bytes is None or not is_sound:
            log.warning("cache.damaged", extra={"artifact": name})
            self._set_aside(entry)
            return None
        hold(entry / _USE, place / _USE)
        return content

    def _begin(self, name: str) -> _Arriving | None:
        """Return a place to bring something to; None while another process brings the same."""
        if name and not self._clear_way(self._incoming / name):
            return None
        folder = self._incoming / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        handle = open_folder(folder)
        try:
            try_lock(handle)
            # Only now, so that nothing under this name is ever without its lock.
            return _Arriving(folder=folder.rename(self._incoming / name) if name else folder, handle=handle)
        except BaseException:
            os.close(handle)  # else nobody could remove it for as long as this process is there
            raise

    def _clear_way(self, folder: Path) -> bool:
        """Set aside what a killed process has left there; False when a process is at it."""
        with suppress(FileNotFoundError):
            handle = open_folder(folder)
            try:
                if not try_lock(handle):
                    return False
                self._set_aside(folder)  # still locked: who tidies at the same time leaves it alone
            finally:
                os.close(handle)
        return True

    def _settle(self, arriving: _Arriving, name: str, place: Path, check: Callable[[], object]) -> Path:
        """Keep what has arrived, or hand it over where it is too large to be kept; return where it is now."""
        content = arriving.folder / CONTENT
        size_bytes = _weigh(content)
        if size_bytes > self.size_bytes:
            return content.rename(place / CONTENT)
        _write_size(arriving.folder, size_bytes)
        entry = self._kept / name
        with self._locked(check):
            kept = self._take(name, place)
            if kept is None:  # no other process was faster
                arriving.folder.rename(entry)
                hold(entry / _USE, place / _USE)
            left = self._let_go()
        clear(left)
        return kept or entry / CONTENT

    def _make_room(self, wanted: Wanted, pulse: Callable[[], None]) -> None:
        """Let go what has to, and wait for what others have let go: it still takes its room."""
        expected_bytes = wanted.expected_bytes
        counted_bytes = expected_bytes if expected_bytes <= self.size_bytes else 0
        missing_bytes = expected_bytes + self.floor_bytes - free_bytes(self.folder)
        with self._locked(wanted.check):
            left = self._let_go(arriving_bytes=counted_bytes, missing_bytes=missing_bytes)
        clear(left)
        while free_bytes(self.folder) < expected_bytes and clear(self._incoming.glob(f"{_GOING}*")):
            wanted.check()
            pulse()
            time.sleep(_POLL_SECONDS)
        free = free_bytes(self.folder)
        if free < expected_bytes:
            raise DiskFull(
                f"{describe_size(expected_bytes)} are to arrive and {describe_size(free)} are free in {self.folder}"
            )

    def _let_go(self, *, arriving_bytes: int = 0, missing_bytes: int = 0) -> list[Path]:
        """Set aside what has to go, and return all that is to be removed once the lock is not held any more."""
        bound_bytes = self.size_bytes - arriving_bytes
        for going in choose(self._list(), bound_bytes=bound_bytes, missing_bytes=missing_bytes):
            log.info("cache.let_go", extra={"artifact": going.name, "bytes": going.size_bytes})
            self._set_aside(self._kept / going.name)
        return [path for path in self._incoming.iterdir() if not is_locked(path)]

    def _set_aside(self, folder: Path) -> None:
        folder.rename(self._incoming / f"{_GOING}{secrets.token_hex(16)}")

    def _list(self) -> Iterator[Kept]:
        with suppress(FileNotFoundError):
            for entry in sorted(self._kept.iterdir()):
                # Without its file it is of no use to anybody.
                gone = Kept(name=entry.name, size_bytes=_read_size(entry) or 0, used_at_ns=0, is_held=False)
                try:
                    yield look(entry / _USE, size_bytes=gone.size_bytes, name=entry.name)
                except FileNotFoundError:
                    yield gone


class _Pulse:
    """Tells those who wait that something still arrives; called at each piece of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._due_at_seconds = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._due_at_seconds:
            self._due_at_seconds = time.monotonic() + ALIVE.total_seconds()
            touch(self._folder)


def _weigh(content: Path) -> int:
    """Return what it takes on the disk: of a tree each entry takes whole blocks."""
    if content.is_file():
        return content.stat().st_size
    blocks = 0
    for _folder, folders, files, descriptor in os.fwalk(content):
        blocks += len(folders)
        blocks += sum(-(-os.stat(name, dir_fd=descriptor).st_size // _BLOCK_BYTES) for name in files)
    return (blocks + 1) * _BLOCK_BYTES


def _write_size(folder: Path, size_bytes: int) -> None:
    with (folder / _USE).open("x") as file:
        file.write(str(size_bytes))
        file.flush()
        os.fsync(file.fileno())


def _read_size(entry: Path) -> int | None:
    try:
        return int((entry / _USE).read_text())
    except (FileNotFoundError, ValueError):
        return None
