"""Whether a device can be given to an experiment, judged by what it was and what it is."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from jobqueue.quantities import describe_size
from workers.hardware.devices import Device, Devices, Inventory, Presence

# NVIDIA's catalogue of Xids: what speaks against the device or its link. Others (13, 31, 43, 45, 68, 109 …) are what a
# faulty program does to itself.
FATAL_XIDS: Final = {
    48: "an uncorrectable memory error",
    62: "the micro-controller halted",
    63: "memory is remapped at the next reset",
    64: "memory could not be remapped",
    74: "an error of NVLink",
    79: "it has fallen off the bus",
    94: "a contained memory error",
    95: "an uncontained memory error",
    119: "its system processor does not answer",
    120: "an error of its system processor",
    140: "an unrecovered memory error",
    143: "it could not be initialised",
}
# A driver or a screen keeps some memory where nobody computes; a program that computes has hundreds of MiB at once.
OCCUPIED_BYTES: Final = 512 * 2**20
OCCUPIED_SHARE: Final = 0.05
# What a killed program had comes back when the driver has tidied up.
FREE_WITHIN: Final = timedelta(seconds=10)
_PAUSE: Final = timedelta(milliseconds=250)


class Ailment(StrEnum):
    """Why a device cannot be used."""

    LOST = "LOST"
    ECC = "ECC"
    XID = "XID"
    RECOVERY = "RECOVERY"  # the driver asks for a reset, or more
    OCCUPIED = "OCCUPIED"
    UNKNOWN = "UNKNOWN"  # the driver does not answer


@dataclass(frozen=True, kw_only=True)
class Unfit:
    """A device that cannot be used: why, and the evidence in a sentence with its numbers."""

    ailment: Ailment
    detail: str


def check(now: Device | None, *, since: Device) -> Unfit | None:
    """Return why a device that was fit `since` is not so now; None when it is.

    Args:
        now: None when it is not there any more.
        since: how it was when it was last known as fit; what grew since then counts.
    """
    if now is None:
        return Unfit(ailment=Ailment.LOST, detail=f"{since.uuid} is not there any more")
    if now.fault:
        return Unfit(ailment=Ailment.LOST, detail=f"{now.uuid} cannot be read: {now.fault}")
    grown = {code: times - since.xids.get(code, 0) for code, times in now.xids.items() if code in FATAL_XIDS}
    told = [f"Xid {code} {times} times: {FATAL_XIDS[code]}" for code, times in sorted(grown.items()) if times > 0]
    if told:
        return Unfit(ailment=Ailment.XID, detail=f"{now.uuid}: {'; '.join(told)}")
    if now.recovery:
        return Unfit(ailment=Ailment.RECOVERY, detail=f"{now.uuid}: before it is used again: {now.recovery}")
    before, after = since.ecc_uncorrected or 0, now.ecc_uncorrected or 0
    if after > before:
        return Unfit(ailment=Ailment.ECC, detail=f"{now.uuid}: uncorrected memory errors grew from {before} to {after}")
    return None


def check_free(now: Device) -> Unfit | None:
    """Return what is wrong when somebody uses a device that nothing of ours runs on; None when it is free."""
    most_bytes = max(OCCUPIED_BYTES, int(now.memory_bytes * OCCUPIED_SHARE))
    if now.used_bytes <= most_bytes:
        return None
    processes = ", ".join(map(str, now.process_ids)) or "unknown"
    used, total = describe_size(now.used_bytes), describe_size(now.memory_bytes)
    return Unfit(
        ailment=Ailment.OCCUPIED,
        detail=f"{now.uuid}: {used} of {total} in use before the start, at most {describe_size(most_bytes)} may be"
        f" (processes: {processes})",
    )


def check_before_start(
    devices: Devices, *, since: Device, wait: Callable[[float], object], patience: timedelta = FREE_WITHIN
) -> Unfit | None:
    """Return why a device cannot take an experiment now; one that is in use is looked at until it is free.

    The caller holds the device's lock and has nothing on it.

    Args:
        devices: what tells it; where the device is not among them it is lost.
        since: how it was when it was last known as fit.
        wait: called with seconds, as `Event.wait`.
        patience: how long memory may stay in use.
    """
    for _ in range(max(1, int(patience / _PAUSE))):
        inventory = devices.look()
        now = inventory.find(since.uuid)
        unfit = check(now, since=since) if now else _tell_missing(inventory, since.uuid)
        if unfit is not None or now is None:
            return unfit
        unfit = check_free(now)
        if unfit is None:
            return None
        wait(_PAUSE.total_seconds())
    return unfit


def _tell_missing(inventory: Inventory, uuid: str) -> Unfit:
    if inventory.presence is Presence.UNKNOWN:
        return Unfit(ailment=Ailment.UNKNOWN, detail=f"{uuid} is not known: {inventory.detail}")
    why = inventory.detail or "; ".join(inventory.problems)
    return Unfit(ailment=Ailment.LOST, detail=f"{uuid} is not there any more" + (f": {why}" if why else ""))
