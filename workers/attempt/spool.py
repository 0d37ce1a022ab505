"""Reports that wait on disk for their broker.

A report is a file until the broker has it, so that the worker's next process of the same name sends what a killed one
left. Files are written beside and renamed: a killed process leaves none that is half.
"""

import fcntl
import logging
import os
import re
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from jobqueue.codec import decode_report, encode_report
from jobqueue.errors import BadEnvelope, InvalidSetting, KeyRefused
from jobqueue.keys import SealingPublicKey, parse_reporting
from jobqueue.report import Report
from workers.file_locks import open_folder, try_lock

log = logging.getLogger(__name__)

_LETTER: Final = re.compile(r"(\d{12})\.([a-z0-9-]+)\.(\d+)\.report")
_NEW: Final = "new"
_UNREADABLE: Final = "unreadable"


class UnreadableLetterError(Exception):
    """A file of the spool is not what was written there."""


@dataclass(frozen=True, kw_only=True)
class Letter:
    """One report that waits.

    Attributes:
        order: grows with each letter of the spool, over all of its processes.
        attempt_id, sequence: which statement about which attempt.
        content: the whole of it, where the disk did not take it; else it is in the file.
    """

    order: int
    attempt_id: str
    sequence: int
    size_bytes: int
    content: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.order:012d}.{self.attempt_id}.{self.sequence}.report"


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a letter holds.

    Attributes:
        queue: the request queue that it is about.
        reporting_key: what it is to be sealed to; None: nobody has named one for it.
        report: encoded, neither signed nor sealed: that is for the way.
    """

    queue: str
    reporting_key: SealingPublicKey | None
    report: bytes = field(repr=False)


class Spool:
    """The letters of one folder, oldest first. Whoever has it sees to it that one thread uses it at a time.

    Args:
        folder: made if need be; a killed process's letters in it are taken over.

    Raises:
        InvalidSetting: on construction: another process has the folder, or it cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.size_bytes = 0
        self._folder = folder
        self._letters: deque[Letter] = deque()
        self._next_sequences: dict[str, int] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)  # an experiment's output is in them, neither sealed yet nor signed
            (folder / _UNREADABLE).mkdir(mode=0o700, exist_ok=True)
            self._handle = _lock(folder)
            for path in sorted(folder.iterdir()):
                self._take_over(path)
        except OSError as error:
            raise InvalidSetting(
                f"reports cannot be kept in {folder}: {error.strerror or error}", hint="check JOBQUEUE_STATE_DIR"
            ) from error
        self._order = self._letters[-1].order if self._letters else 0

    def __len__(self) -> int:
        return len(self._letters)

    @property
    def first(self) -> Letter:
        """The letter that is to leave next."""
        return self._letters[0]

    def next_sequence(self, attempt_id: str) -> int:
        """Return the number that comes after those of an attempt that an earlier process left; 0 where it left none."""
        return self._next_sequences.get(attempt_id, 0)

    def add(self, report: Report, *, reporting_key: SealingPublicKey | None = None) -> None:
        """Keep a report with what it is to be sealed to; one that the disk does not take is kept in memory."""
        line = reporting_key.line if reporting_key else ""
        content = f"{report.queue}\n{line}\n".encode() + encode_report(report)
        self._order += 1
        letter = Letter(
            order=self._order, attempt_id=report.attempt_id, sequence=report.sequence, size_bytes=len(content)
        )
        is_last = report.state is not None and report.state.is_final
        try:
            self._write(letter, content, is_synced=is_last)
        except OSError as error:
            log.warning("reports.not_spooled", extra={"folder": str(self._folder), "error": error.strerror})
            letter = replace(letter, content=content)
        self._letters.append(letter)
        self.size_bytes += letter.size_bytes

    def read(self, letter: Letter) -> Content:
        """Return what a letter holds.

        Raises:
            UnreadableLetterError: the file is not what was written there.
        """
        try:
            content = (self._folder / letter.name).read_bytes() if letter.content is None else letter.content
            queue, _, rest = content.partition(b"\n")
            line, _, body = rest.partition(b"\n")
            report = decode_report(body)
            reporting_key = parse_reporting(line.decode("ascii")) if line else None
        except (OSError, BadEnvelope, KeyRefused, UnicodeDecodeError) as error:
            raise UnreadableLetterError(str(error)) from error
        found = (report.queue.encode(), report.attempt_id, report.sequence)
        if found != (queue, letter.attempt_id, letter.sequence):
            raise UnreadableLetterError("it is not the report that its name says")
        return Content(queue=report.queue, reporting_key=reporting_key, report=body)

    def remove(self) -> None:
        """Remove the first letter: the broker has it, or nobody is to have it."""
        letter = self._pop()
        try:
            (self._folder / letter.name).unlink(missing_ok=True)
        except OSError as error:  # a later process sends it again
            log.warning("reports.not_removed", extra={"file": letter.name, "error": error.strerror})

    def set_aside(self, why: str) -> None:
        """Move the first letter, which cannot be sent, to where it is in nobody's way."""
        letter = self._pop()
        log.error("reports.unreadable", extra={"file": letter.name, "error": why})
        self._move_aside(self._folder / letter.name)

    def close(self) -> None:
        """Let the next process have the folder; what is added later is kept for that one."""
        fcntl.flock(self._handle, fcntl.LOCK_UN)

    def _take_over(self, path: Path) -> None:
        """Take over a file of an earlier process."""
        if path.name == _UNREADABLE:
            return
        known = _LETTER.fullmatch(path.name)
        if known and path.is_file():
            size_bytes = path.stat().st_size
            letter = Letter(order=int(known[1]), attempt_id=known[2], sequence=int(known[3]), size_bytes=size_bytes)
            self._letters.append(letter)
            self._next_sequences[letter.attempt_id] = letter.sequence + 1
            self.size_bytes += size_bytes
        elif path.name == _NEW:
            path.unlink()  # it was never kept
        else:
            log.error("reports.unreadable", extra={"file": path.name, "error": "it is none of the spool's files"})
            self._move_aside(path)

    def _write(self, letter: Letter, content: bytes, *, is_synced: bool) -> None:
        """Write a letter whole or not at all; a synced one survives the loss of power too."""
        new = self._folder / _NEW
        with new.open("wb") as file:
            file.write(content)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        new.rename(self._folder / letter.name)
        if is_synced:
            os.fsync(self._handle)

    def _pop(self) -> Letter:
        letter = self._letters.popleft()
        self.size_bytes -= letter.size_bytes
        return letter

    def _move_aside(self, path: Path) -> None:
        try:
            path.rename(self._folder / _UNREADABLE / path.name)
        except OSError as error:
            log.warning("reports.not_set_aside", extra={"file": path.name, "error": error.strerror})


def _lock(folder: Path) -> int:
    """Open the folder for this process alone; what it starts does not inherit that."""
    handle = open_folder(folder)
    if not try_lock(handle):
        os.close(handle)
        raise InvalidSetting(
            f"another process keeps its reports in {folder}: two workers of one name",
            hint="give each worker a name of its own, as in `-n left@%h`",
        )
    return handle
