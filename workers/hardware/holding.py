"""One device that a worker has: found, locked for it alone, watched, and closed to new work while it is sick."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Final

from jobqueue.errors import InvalidSetting
from workers.hardware.custody_files import CustodyFiles
from workers.hardware.devices import Device, Devices, Presence
from workers.hardware.fitness import FREE_WITHIN, Ailment, Unfit, check_before_start, check_free
from workers.hardware.locks import DeviceLocks
from workers.hardware.nodes import find_nodes
from workers.hardware.quarantine import Custody, condemn, examine
from workers.hardware.slots import Slot, find_device
from workers.rounds import Rounds

log = logging.getLogger(__name__)

LOOK_EVERY: Final = timedelta(seconds=5)
# A driver that is slow once is not gone.
_SILENT_LOOKS: Final = 2


class HeldDevice:
    """The device of one slot, from the start of its worker to its end.

    Args:
        slot: which one.
        devices: what tells it; closed with this.
        locks: of this machine.
        owner: the worker, told to whoever finds the device taken.
        kept: where its quarantine outlives this process.
        clock: monotonic, in seconds.

    Attributes:
        device: as it was at the start.
        seen: as it was when it was last there.
        unfit: why it takes no work now; None while it does.
        is_idle: tells whether nothing of the worker's runs on it; set before `start`.
        on_change: called after `unfit` has changed, on the thread that found out.

    Raises:
        InvalidSetting: on construction: it is not there, or another worker has it.
    """

    def __init__(
        self,
        slot: Slot,
        *,
        devices: Devices,
        locks: DeviceLocks,
        owner: str,
        kept: CustodyFiles,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._devices, self._clock = devices, clock
        self.device: Device = find_device(slot, devices)
        self.seen = self.device
        self._lock = _take(locks, self.device.uuid, owner=owner)
        self._kept, self._judging = kept, threading.Lock()
        self._custody = kept.load(self.device, at_seconds=clock())
        kept.forget_told(self.device.uuid)  # to whoever had it before
        self.unfit: Unfit | None = None if self._custody.is_offered else self._custody.unfit
        self.is_idle: Callable[[], bool] = lambda: False
        self.on_change: Callable[[], None] = lambda: None
        self._occupied_since_seconds: float | None = None
        self._silent_looks = 0
        self._rounds = Rounds("device", self.look, every=lambda: LOOK_EVERY)

    def start(self) -> None:
        """Look now and then."""
        self._rounds.start()

    def close(self) -> None:
        """Stop looking, and leave the device to others."""
        # First: whoever waits for a driver that hangs gets an answer.
        self._devices.close()
        self._rounds.close()
        os.close(self._lock)

    def look(self) -> None:
        """Judge the device as it is now."""
        was_idle = self.is_idle()
        inventory = self._devices.look()
        if inventory.presence is Presence.UNKNOWN:
            self._silent_looks += 1
            if self._silent_looks >= _SILENT_LOOKS:
                self._tell(Unfit(ailment=Ailment.UNKNOWN, detail=inventory.detail))
            return
        self._silent_looks = 0
        now = inventory.find(self.device.uuid)
        self.seen = now or self.seen
        told = self._kept.told(self.device.uuid)
        # Asked twice: what began or ended meanwhile may have its memory still, or already.
        with self._judging:
            self._judge(now, is_idle=was_idle and self.is_idle())
            if told and self._custody.is_offered:
                self._keep(condemn(self._custody, told, now=now, at_seconds=self._clock()))
        self._tell(None if self._custody.is_offered else self._custody.unfit)
        # Last: until then nobody is given the device because of the note, and from now on because it is known as unfit.
        if told:
            self._kept.forget_told(self.device.uuid)

    def check_before_start(self, uuids: Iterable[str], *, wait: Callable[[float], object]) -> Unfit | None:
        """Return why one of these devices cannot take an experiment now; nothing of ours is to run on them.

        The worker's own device goes into quarantine for it; of another one, the worker that watches it is told.

        Args:
            uuids: what the experiment was given.
            wait: called with seconds, as `Event.wait`, while memory is in use that may come back.
        """
        for uuid in uuids:
            since = self._custody.known if uuid == self.device.uuid else self._devices.look().find(uuid)
            unfit = check_before_start(self._devices, since=since or Device(uuid=uuid, index=0), wait=wait)
            if unfit is not None:
                if uuid == self.device.uuid or unfit.ailment is Ailment.UNKNOWN:  # a silent driver tells of no device
                    self._take_out(unfit)
                else:
                    self._kept.tell(uuid, unfit)
                return unfit
        return None

    def nodes_of(self, uuids: Iterable[str]) -> tuple[str, ...]:
        """Return the files below /dev that an experiment opens to use these devices.

        Raises:
            RuntimeFailure: the driver does not tell them now.
        """
        return find_nodes(self._devices.look(), uuids)

    def _take_out(self, unfit: Unfit) -> None:
        if unfit.ailment is not Ailment.UNKNOWN:  # of a driver that is silent, its next answer tells more
            now = self._devices.look().find(self.device.uuid)
            with self._judging:
                self._keep(condemn(self._custody, unfit, now=now, at_seconds=self._clock()))
        self._tell(unfit)

    def _judge(self, now: Device | None, *, is_idle: bool) -> None:
        at_seconds = self._clock()
        # What still runs on a sick device is not in the way of its retest: that waits for its end.
        if self._custody.is_offered or is_idle:
            self._keep(examine(self._custody, now, at_seconds=at_seconds))
        unfit = check_free(now) if is_idle and self._custody.is_offered and now else None
        if unfit is None:
            self._occupied_since_seconds = None
        elif self._occupied_since_seconds is None:
            self._occupied_since_seconds = at_seconds
        elif at_seconds - self._occupied_since_seconds >= FREE_WITHIN.total_seconds():
            self._keep(condemn(self._custody, unfit, now=now, at_seconds=at_seconds))
            self._occupied_since_seconds = None

    def _keep(self, custody: Custody) -> None:
        was, self._custody = self._custody, custody
        if custody != was:
            self._kept.save(custody)

    def _tell(self, unfit: Unfit | None) -> None:
        if unfit == self.unfit:
            return
        self.unfit = unfit
        self.on_change()


def _take(locks: DeviceLocks, uuid: str, *, owner: str) -> int:
    handle = locks.take(uuid, owner=owner)
    if handle is None:
        raise InvalidSetting(
            f"{uuid} is taken by {locks.holder(uuid) or 'another worker'}",
            hint="one device serves one worker: stop that one, or choose another slot",
        )
    return handle
