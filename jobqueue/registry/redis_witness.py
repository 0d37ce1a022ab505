"""What one process knows of the registry's clock: when it was heard last, and how much time has gone by since.

The server's clock may step; this machine's monotonic one does not. Both together tell a step from time that went by.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Witness:
    """What was heard last, in milliseconds of the registry's clock.

    Attributes:
        era: changes when that clock steps; empty before anything was heard.
        since_ms: since when it was watched, without a step.
        heard_ms: what it was then; heard_at_seconds: when that was, on a clock that counts suspended time too.
        floor_ms: the highest token known of; so they grow also over a wiped registry whose clock went back.
    """

    era: str = ""
    since_ms: int = 0
    heard_ms: int = 0
    heard_at_seconds: float = 0.0
    floor_ms: int = 0

    def arguments(self) -> tuple[str, int, int, int, int]:
        """Return what the scripts of workers end with."""
        elapsed_ms = int((_now_seconds() - self.heard_at_seconds) * 1000) if self.era else 0
        return (self.era, self.since_ms, self.heard_ms, elapsed_ms, self.floor_ms)


def hear(reply: Sequence[bytes]) -> Witness:
    """Return what the first four parts of such a script's answer tell, which has just arrived."""
    era, since_ms, now_ms, floor_ms = reply
    return Witness(
        era=era.decode(),
        since_ms=int(since_ms),
        heard_ms=int(now_ms),
        heard_at_seconds=_now_seconds(),
        floor_ms=int(floor_ms),
    )


def _now_seconds() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
