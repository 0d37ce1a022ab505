"""When what was asked of a machine can start, beside what runs there and what has waited longer: reckoning alone.

Whoever waits is planned for the earliest moment at which all that it needs is free at once, the oldest first. Whoever
came later may start before it where that moment stays as it is: with what is left over even then, or when it has ended
by then. What runs is taken to last as long as it may, so what comes true is the plan or better, and nobody starves.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from jobqueue.ids import WorkerId
from jobqueue.resources import Resources

# What runs although its time is over, as while its outputs are stored, is expected to end within that.
OVERDUE: Final = timedelta(minutes=1)
# A gap that is too short for that is not looked for: nobody asks for less.
SHORTEST: Final = timedelta(minutes=1)
_A_LITTLE: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one attempt has of its machine, or waits for.

    Attributes:
        worker_id: the worker that runs it.
        resources: what it asked for.
        since_seconds: when it asked first.
        seconds: how long it needs all of it, at most.
        is_granted: whether it has it; else it waits.
        until_seconds: when it gives it back at the latest, as long as it keeps to its timeout; 0 while it waits.
        devices: UUIDs of those that it has.
    """

    worker_id: WorkerId
    resources: Resources
    since_seconds: float
    seconds: float
    is_granted: bool = False
    until_seconds: float = 0.0
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SlotRecord:
    """What a worker that is there brings to its machine.

    Attributes:
        cpus: so many cores its work may use at once, the machine's or fewer.
        device: the UUID of the device that it watches; empty for the cores' worker.
        device_bytes: that device's memory.
        unfit: why nobody is given the device now; empty while it is offered.
    """

    worker_id: WorkerId
    cpus: float
    device: str = ""
    device_bytes: int = 0
    unfit: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to be given away; `slots` are those of the workers that are there."""

    cpus: float
    memory_bytes: int
    slots: tuple[SlotRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Start:
    """When something can start, and on which devices, if nothing ends before it has to."""

    at_seconds: float
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Booking:
    """What is in use from one moment to another."""

    entry: Entry
    devices: tuple[str, ...]
    at_seconds: float
    until_seconds: float


def find_start(asking: Entry, *, machine: Machine, others: Iterable[Entry], now_seconds: float) -> Start | None:
    """Return when it can start without delaying anybody who has waited longer; None: not with what is there now.

    Args:
        asking: who wants to start.
        machine: what there is; what nobody may be given is not given.
        others: all other entries of the machine.
        now_seconds: on the clock of the entries.
    """
    known = tuple(others)
    booked = [_book_granted(entry, now_seconds) for entry in known if entry.is_granted]
    for entry in sorted((each for each in known if not each.is_granted), key=_age):
        start = _find_earliest(entry, machine, booked, now_seconds) if _age(entry) < _age(asking) else None
        if start:
            booked.append(_book(entry, start))
    return _find_earliest(asking, machine, booked, now_seconds)


def takes_more(worker_id: WorkerId, *, machine: Machine, entries: Sequence[Entry], now_seconds: float) -> bool:
    """Tell whether a worker with a device that runs nothing may take another message.

    It may while its own device is free. It also may when that serves an experiment of another worker, for a device
    whose own worker is busy with something else. So there are as many such workers as there are free devices. While
    all of these are kept for whoever waits, none does, unless there is time enough for something short.
    """
    used = {uuid for entry in entries for uuid in entry.devices}
    busy = {entry.worker_id for entry in entries}
    free = [slot for slot in machine.slots if slot.device and not slot.unfit and slot.device not in used]
    strays = sum(slot.worker_id in busy for slot in free)
    homeless = sorted(slot.worker_id for slot in machine.slots if slot.device in used and slot.worker_id not in busy)
    if worker_id not in {slot.worker_id for slot in free} and worker_id not in homeless[:strays]:
        return False
    start = find_start(_probe(worker_id, now_seconds), machine=machine, others=entries, now_seconds=now_seconds)
    return start is not None and start.at_seconds <= now_seconds


def _probe(worker_id: WorkerId, now_seconds: float) -> Entry:
    """Return what asks for one device and nothing else, for the shortest time that is worth it."""
    least = Resources(cpus=0, memory_bytes=0, disk_bytes=0, shm_bytes=0, gpus=1)
    return Entry(worker_id=worker_id, resources=least, since_seconds=now_seconds, seconds=SHORTEST.total_seconds())


def _age(entry: Entry) -> tuple[float, str]:
    return entry.since_seconds, entry.worker_id


def _book_granted(entry: Entry, now_seconds: float) -> _Booking:
    until_seconds = entry.until_seconds
    if until_seconds <= now_seconds:
        until_seconds = now_seconds + OVERDUE.total_seconds()
    return _Booking(entry=entry, devices=entry.devices, at_seconds=now_seconds, until_seconds=until_seconds)


def _book(entry: Entry, start: Start) -> _Booking:
    until_seconds = start.at_seconds + entry.seconds
    return _Booking(entry=entry, devices=start.devices, at_seconds=start.at_seconds, until_seconds=until_seconds)


def _find_earliest(asking: Entry, machine: Machine, booked: Sequence[_Booking], now_seconds: float) -> Start | None:
    # Nothing gets better but at an end.
    for at_seconds in sorted({now_seconds, *(each.until_seconds for each in booked)}):
        devices = _find_room(asking, machine, booked, at_seconds)
        if devices is not None:
            return Start(at_seconds=at_seconds, devices=devices)
    return None


def _find_room(
    asking: Entry, machine: Machine, booked: Sequence[_Booking], at_seconds: float
) -> tuple[str, ...] | None:
    """Return the devices it would have from that moment on for as long as it needs; None when something is short."""
    until_seconds = at_seconds + asking.seconds
    beside = [each for each in booked if each.at_seconds < until_seconds and each.until_seconds > at_seconds]
    # And nothing gets worse but at a start.
    for moment in {at_seconds, *(each.at_seconds for each in beside if each.at_seconds > at_seconds)}:
        at_once = [each.entry for each in beside if each.at_seconds <= moment < each.until_seconds]
        if _exceeds([asking, *at_once], asking.worker_id, machine):
            return None
    taken = {uuid for each in beside for uuid in each.devices}
    return _choose(asking, machine, taken)


def _exceeds(at_once: Sequence[Entry], worker_id: WorkerId, machine: Machine) -> bool:
    own = sum(entry.resources.cpus for entry in at_once if entry.worker_id == worker_id)
    most = next((slot.cpus for slot in machine.slots if slot.worker_id == worker_id), machine.cpus)
    cpus = sum(entry.resources.cpus for entry in at_once)
    memory_bytes = sum(entry.resources.memory_bytes for entry in at_once)
    return own > most + _A_LITTLE or cpus > machine.cpus + _A_LITTLE or memory_bytes > machine.memory_bytes


def _choose(asking: Entry, machine: Machine, taken: Collection[str]) -> tuple[str, ...] | None:
    """Return devices for it: its own worker's first, then the smallest that will do.

    The order is always the same, so that what is left over for others does not depend on who reckons, and when.
    """
    wanted = asking.resources
    large_enough = [
        slot
        for slot in machine.slots
        if slot.device and not slot.unfit and slot.device not in taken and slot.device_bytes >= wanted.gpu_memory_bytes
    ]
    if len(large_enough) < wanted.gpus:
        return None
    large_enough.sort(key=lambda slot: (slot.worker_id != asking.worker_id, slot.device_bytes, slot.device))
    return tuple(slot.device for slot in large_enough[: wanted.gpus])
