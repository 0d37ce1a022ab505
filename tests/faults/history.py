"""One run as it was seen from outside: a file of JSON lines, written as things happen and judged afterwards."""

import json
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Fact = dict[str, Any]


def clock_seconds() -> float:
    """Return the clock that every fact is on, and that a container reads in /proc/uptime: both are one kernel's."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class History:
    """Appends facts to a file. Safe in threads; every line is there when the call returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8")

    def add(self, kind: str, **fields: Any) -> None:
        """Write one fact down, now."""
        line = json.dumps({"kind": kind, "t": round(clock_seconds(), 3), **fields}, default=str)
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Write nothing more."""
        self._file.close()


def load_history(path: Path) -> list[Fact]:
    """Return every fact of a run, oldest first."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def of_kind(facts: Iterable[Fact], *kinds: str) -> Iterator[Fact]:
    """Return the facts of some kinds."""
    return (fact for fact in facts if fact["kind"] in kinds)


def only(facts: Iterable[Fact], kind: str) -> Fact:
    """Return the last fact of a kind of which a complete history has one; an empty one where it is missing."""
    found: Fact = {}
    for fact in of_kind(facts, kind):
        found = fact
    return found
