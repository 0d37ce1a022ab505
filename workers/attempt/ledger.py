"""Who has what of one machine, and who waits for it: the one place that all of its slot workers ask.

It has no file of its own. What an attempt has, or waits for, stands in its lease file, which lies there exactly as long
as something of the attempt may, whatever becomes of its worker: nothing has to be tidied up, and who goes on with a
container has its share already. A lock that is held for a moment lets one worker decide at a time.
"""

import json
import logging
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote

from jobqueue.errors import InvalidSetting
from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.resources import Resources
from workers.attempt.lease import clock_seconds
from workers.attempt.lease_files import KeptLease, LeaseFile, known_to, read_boot_id, read_leases, write_whole
from workers.attempt.node_folder import NodeFolder
from workers.file_locks import locked
from workers.hardware.custody_files import CustodyFiles
from workers.hardware.devices import Device
from workers.hardware.fitness import Unfit
from workers.hardware.timetable import Entry, Machine, SlotRecord, Start, find_start, takes_more

log = logging.getLogger(__name__)

# Who waits for it looks at nothing else meanwhile, such as a cancel.
_LOCK_WITHIN: Final = timedelta(seconds=2)
_SEEN_WITHIN_SECONDS: Final = 0.5


class Ledger:
    """One slot worker's view of what its machine has given away; any thread.

    Args:
        node: the machine's folder.
        worker_id: of this worker.
        cpus, memory_bytes: of the whole machine, as far as it is for experiments.
        clock: `clock_seconds`, and in tests another one.

    Attributes:
        is_withheld: tells whether the worker wants to have its device used no more.
    """

    def __init__(
        self,
        node: NodeFolder,
        *,
        worker_id: WorkerId,
        cpus: float,
        memory_bytes: int,
        clock: Callable[[], float] = clock_seconds,
    ) -> None:
        self._node, self._worker_id, self._clock = node, worker_id, clock
        self._cpus, self._memory_bytes = cpus, memory_bytes
        self._slots = node.root / "slots"
        self._custody = CustodyFiles(folder=node.devices, boot_id=read_boot_id())
        self._own: SlotRecord | None = None
        self.is_withheld: Callable[[], bool] = lambda: False
        self._seen, self._seen_at_seconds, self._takes_more = (0, 0), 0.0, True

    def join(self, *, cpus: float, device: Device | None) -> None:
        """Say what this worker brings to its machine, for as long as it is there.

        Raises:
            InvalidSetting: the disk does not take it.
        """
        uuid, device_bytes = (device.uuid, device.memory_bytes) if device else ("", 0)
        try:
            self._write(SlotRecord(worker_id=self._worker_id, cpus=cpus, device=uuid, device_bytes=device_bytes))
        except OSError as error:
            raise InvalidSetting(f"no folder for this node: {error}", hint="check JOBQUEUE_STATE_DIR") from error

    def note(self, unfit: Unfit | None) -> None:
        """Say whether nobody is to be given this worker's device, as while an operator drains it; said once."""
        why = unfit.detail if unfit else "its worker is to drain" if self.is_withheld() else ""
        if self._own and self._own.unfit != why:
            try:
                self._write(replace(self._own, unfit=why))
            except OSError as error:
                log.warning("slot_record.not_written", extra={"error": error.strerror})

    def take(self, file: LeaseFile, resources: Resources, *, seconds: float) -> Start | None:
        """Have an attempt take its share if it can start now, else wait in line for it, where it was before if it did.

        Whoever has a share and asks again is judged anew, as for more time than it had asked for.

        Args:
            file: of the attempt's lease, written before.
            resources: what it needs.
            seconds: how long it needs it at most.

        Returns:
            When it can start, as a delay on `at_seconds`: 0 means that it has its share, on these devices. None: not
            with what is there now, so that nothing is kept for it.

        Raises:
            OSError: the disk does not take it.
            RuntimeFailure: another worker decides for far too long.
        """
        with self._deciding():
            now_seconds, kept = self._clock(), file.kept
            since_seconds = kept.entry.since_seconds if kept.entry else now_seconds
            asking = self.ask(resources, seconds=seconds, since_seconds=since_seconds)
            # Of its own earlier attempts nothing is left once it starts.
            others = [each.entry for each in self._read() if each.entry and each.experiment_id != kept.experiment_id]
            start = find_start(asking, machine=self.machine(), others=others, now_seconds=now_seconds)
            if start and start.at_seconds <= now_seconds:
                until_seconds = now_seconds + seconds
                asking = replace(asking, is_granted=True, until_seconds=until_seconds, devices=start.devices)
            if asking != kept.entry:
                file.update(entry=asking)
            return replace(start, at_seconds=start.at_seconds - now_seconds) if start else None

    def ask(self, resources: Resources, *, seconds: float, since_seconds: float | None = None) -> Entry:
        """Return the entry of somebody who asks now, or has since then."""
        since_seconds = self._clock() if since_seconds is None else since_seconds
        return Entry(worker_id=self._worker_id, resources=resources, since_seconds=since_seconds, seconds=seconds)

    def remaining_seconds(self, entry: Entry) -> float:
        """Return how long an entry may still keep its share."""
        return entry.until_seconds - self._clock()

    def can_start(self, asking: Entry, *, beside: Collection[tuple[ExperimentId, Entry]] = ()) -> bool:
        """Tell whether it could start now; nothing is kept for it. See `plan`."""
        start = self.plan(asking, beside=beside)
        return start is not None and not start.at_seconds

    def plan(self, asking: Entry, *, beside: Collection[tuple[ExperimentId, Entry]] = ()) -> Start | None:
        """Return when it could start, as `take` does; nothing is kept for it.

        Args:
            asking: as `ask` returns it.
            beside: what this worker has taken; what of it stands in the ledger by now is counted once.
        """
        now_seconds, known = self._clock(), self._read()
        there = {each.experiment_id for each in known}
        others = [each.entry for each in known if each.entry]
        for experiment_id, entry in beside:
            if experiment_id not in there:
                until_seconds = now_seconds + entry.seconds
                others.append(replace(entry, is_granted=True, until_seconds=until_seconds))
        start = find_start(asking, machine=self.machine(), others=others, now_seconds=now_seconds)
        return replace(start, at_seconds=start.at_seconds - now_seconds) if start else None

    def waiting(self) -> list[Entry]:
        """Return who waits."""
        return [each.entry for each in self._read() if each.entry and not each.entry.is_granted]

    def takes_more(self) -> bool:
        """Tell whether this worker, which runs nothing, has a use for a message now; always where it has no device."""
        if not (self._own and self._own.device):
            return True
        # It is asked many times a second, and an idle machine changes nothing.
        seen = (self._node.leases.stat().st_mtime_ns, self._slots.stat().st_mtime_ns)
        if seen != self._seen or time.monotonic() - self._seen_at_seconds >= _SEEN_WITHIN_SECONDS:
            entries = [each.entry for each in self._read() if each.entry]
            now_seconds = self._clock()
            self._takes_more = takes_more(
                self._worker_id, machine=self.machine(), entries=entries, now_seconds=now_seconds
            )
            self._seen, self._seen_at_seconds = seen, time.monotonic()
        return self._takes_more

    def user_of(self, uuid: str) -> ExperimentId | None:
        """Return the experiment that has a device, or None."""
        users = (each.experiment_id for each in self._read() if each.entry and uuid in each.entry.devices)
        return next(users, None)

    def machine(self) -> Machine:
        """Return what there is to be given away, by the workers that are there now."""
        found = (_read_record(path) for path in sorted(self._slots.glob("*.json")))
        there = [self._doubt(slot) for slot in found if slot and self._node.is_alive(slot.worker_id)]
        # A worker that has just started may have had another device before.
        slots = {slot.device or slot.worker_id: slot for slot in there}
        return Machine(cpus=self._cpus, memory_bytes=self._memory_bytes, slots=tuple(slots.values()))

    def _doubt(self, slot: SlotRecord) -> SlotRecord:
        """Return it with what another worker has found wrong with its device; soon its own one says so itself."""
        told = self._custody.told(slot.device) if slot.device and not slot.unfit else None
        return replace(slot, unfit=told.detail) if told else slot

    def _read(self) -> list[KeptLease]:
        """Return what counts: nothing runs of another boot, and who waits does so while its worker is there."""
        boot_id = read_boot_id()
        found = [kept for kept in read_leases(self._node.leases).values() if kept.entry and kept.boot_id == boot_id]
        waiting = {kept.worker_id for kept in found if kept.entry and not kept.entry.is_granted}
        gone = {worker_id for worker_id in waiting if not self._node.is_alive(worker_id)}
        return [kept for kept in found if kept.entry and (kept.entry.is_granted or kept.worker_id not in gone)]

    def _write(self, slot: SlotRecord) -> None:
        self._slots.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._slots / f"{quote(slot.worker_id, safe='@')}.json", json.dumps(asdict(slot)).encode())
        self._own = slot

    def _deciding(self) -> AbstractContextManager[None]:
        """Let nobody else decide meanwhile."""
        return locked(self._node.root / "ledger", within=_LOCK_WITHIN)


def _read_record(path: Path) -> SlotRecord | None:
    try:
        return SlotRecord(**known_to(SlotRecord, json.loads(path.read_bytes())))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("slot_record.unreadable", extra={"file": path.name, "error": str(error)})
        return None
