"""Which request queues are paused, by whom and since when: a port of the registry, and what passes through it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Pause:
    """What an operator wants of a request queue: that nothing more is taken from it, until it is resumed.

    Attributes:
        at: since when, aware.
        by: who wants it, in words.
        reason: why, in words; empty where nobody said.
    """

    queue: str
    at: datetime
    by: str
    reason: str = ""


class Pauses(Protocol):
    """What operators want of queues. Raises `RegistryUnavailable` when the registry does not answer."""

    def pause(self, pause: Pause) -> None:
        """Keep it until it is taken back, whether or not there is such a queue; of one queue the first one counts."""
        ...

    def resume(self, queue: str) -> bool:
        """Take that back; tells whether it was wanted."""
        ...

    def paused(self) -> dict[str, Pause]:
        """Return all that operators want, by queue."""
        ...
