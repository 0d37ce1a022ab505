"""Taking a sick device out and letting it back: a state machine without a clock of its own.

    FIT --unfit--> QUARANTINED --retest passed--> PAROLE --long enough--> FIT
                    ^  |  ^                         |
                    +--+  +---------unfit-----------+
                 retest failed

Each quarantine is twice as long as the one before, until the device has gone through a parole, which is as long as the
quarantine before it: a device that fails again and again is offered less and less. What is judged is what grew since
the last judgement, so that an old count of errors holds no device for ever.
"""

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Final

from workers.hardware.devices import Device
from workers.hardware.fitness import Unfit, check, check_free

FIRST_BACK_OFF: Final = timedelta(minutes=1)
LONGEST_BACK_OFF: Final = timedelta(hours=1)
_DOUBLINGS: Final = 16


class Standing(StrEnum):
    """Whether a device is offered."""

    FIT = "FIT"
    QUARANTINED = "QUARANTINED"
    PAROLE = "PAROLE"


@dataclass(frozen=True, kw_only=True)
class Custody:
    """One device as this node keeps it.

    Attributes:
        known: how it was when it was last judged sick, else when it was first seen; what grows from there counts.
        strikes: how often it was found sick since it was last FIT.
        until_seconds: when it is tested again, or its parole ends, on the caller's monotonic clock; 0 while FIT.
        unfit: what it was found sick with last; None when it never was.
    """

    known: Device
    standing: Standing = Standing.FIT
    strikes: int = 0
    until_seconds: float = 0.0
    unfit: Unfit | None = None

    @property
    def is_offered(self) -> bool:
        """Whether experiments may have it."""
        return self.standing is not Standing.QUARANTINED


def examine(custody: Custody, now: Device | None, *, at_seconds: float) -> Custody:
    """Judge a device by how it is now; a quarantined one only when its retest is due.

    Args:
        custody: how it was kept until now.
        now: None when it is not there any more. Not to be called while the devices are UNKNOWN: nothing is known then.
        at_seconds: on the clock of `until_seconds`.
    """
    is_due = at_seconds >= custody.until_seconds
    if custody.standing is Standing.QUARANTINED and not is_due:
        return custody
    unfit = check(now, since=custody.known)
    if unfit is None and now is not None and custody.standing is Standing.QUARANTINED:
        # Nothing of ours has run on it meanwhile.
        unfit = check_free(now)
    if unfit is not None:
        return condemn(custody, unfit, now=now, at_seconds=at_seconds)
    if custody.standing is Standing.QUARANTINED:
        until_seconds = at_seconds + back_off(custody.strikes).total_seconds()
        return replace(custody, standing=Standing.PAROLE, until_seconds=until_seconds)
    if custody.standing is Standing.PAROLE and is_due:
        return replace(custody, standing=Standing.FIT, strikes=0, until_seconds=0.0)
    return custody


def condemn(custody: Custody, unfit: Unfit, *, now: Device | None, at_seconds: float) -> Custody:
    """Take a device out that was found sick, here or elsewhere (its memory is in use before a start)."""
    strikes = custody.strikes + 1
    return Custody(
        # A device that cannot be read tells no counts: those of before stand.
        known=custody.known if now is None or now.fault else now,
        standing=Standing.QUARANTINED,
        strikes=strikes,
        until_seconds=at_seconds + back_off(strikes).total_seconds(),
        unfit=unfit,
    )


def back_off(strikes: int) -> timedelta:
    """Return how long the quarantine after so many strikes lasts."""
    return min(FIRST_BACK_OFF * (1 << min(max(strikes - 1, 0), _DOUBLINGS)), LONGEST_BACK_OFF)
