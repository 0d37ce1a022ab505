"""What one node's workers know together of the queues: one of them asks the broker, the others read what it wrote.

Otherwise each slot of a machine would ask the same, and where questions are paid for, each would cost as much.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from jobqueue.brokers.base import Seen, Survey
from jobqueue.routing import Selection
from workers.file_locks import is_locked, lock

# Whoever asks may be slow, or hang: what is older than so many rounds and a moment is asked for by everybody.
_ROUNDS: Final = 3
_MOMENT: Final = timedelta(seconds=5)


class SharedView:
    """The queues that a selection's patterns find, asked for once on a machine. Used by one thread at a time.

    Args:
        survey: the broker's port.
        selection: whose patterns.
        folder: of the node.
        broker: its URL; workers of different brokers do not share a view.
        refresh: how often it is asked for.
    """

    def __init__(self, survey: Survey, selection: Selection, *, folder: Path, broker: str, refresh: timedelta) -> None:
        self._survey, self._selection = survey, selection
        self._oldest = _ROUNDS * refresh + _MOMENT
        name = _digest((broker, *selection.words))
        self._file, self._lock = folder / f"queues-{name}.json", folder / f"queues-{name}.lock"
        self._held: int | None = None

    def look(self) -> Seen:
        """Return what is there now.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        if self._is_asker():
            seen = self._survey.look(self._selection)
            self._write(seen)
            return seen
        return self._read() or self._survey.look(self._selection)

    def close(self) -> None:
        """Let another worker ask."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _is_asker(self) -> bool:
        if self._held is None and not is_locked(self._lock):
            self._held = lock(self._lock)
        return self._held is not None

    def _write(self, seen: Seen) -> None:
        text = json.dumps({"at": _now_seconds(), "waiting": dict(seen.waiting), "others": seen.others})
        new = self._file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # on a full disk each worker asks by itself
            new.write_text(text, encoding="utf-8")
            new.replace(self._file)

    def _read(self) -> Seen | None:
        try:
            told = json.loads(self._file.read_text(encoding="utf-8"))
            if not 0 <= _now_seconds() - told["at"] <= self._oldest.total_seconds():
                return None
            return Seen(waiting=told["waiting"], others=tuple(told["others"]))
        except (OSError, ValueError, KeyError):
            return None


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def _now_seconds() -> float:
    """Return seconds on a clock that all processes of this machine share, and that never steps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
