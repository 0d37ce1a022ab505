"""An attempt's turn on its machine: it goes on once all that it asks for is its own, and waits in line until then."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from jobqueue.envelope import Verified, open_sealed
from jobqueue.errors import JobqueueError, RuntimeFailure
from jobqueue.ids import NodeId
from jobqueue.lifecycle import Outcome, Reason
from jobqueue.quantities import describe_size, format_duration
from jobqueue.resources import Resources
from jobqueue.spec import ExperimentSpec
from workers.attempt.elsewhere import LEFT, find_idle, has_left, note_leaving
from workers.attempt.lease_files import LeaseFile
from workers.attempt.ledger import Ledger
from workers.attempt.site import Site
from workers.hardware.timetable import Start

log = logging.getLogger(__name__)

LOOK_EVERY: Final = timedelta(milliseconds=200)
TELL_EVERY: Final = timedelta(seconds=10)
# What a machine lacks for so long (a sick device, a worker that is gone) another one may have.
LACK: Final = timedelta(minutes=1)
# So often another node is looked for, idle twice in a row: between two experiments each one is for a moment.
LOOK_ELSEWHERE: Final = timedelta(minutes=1)
# For what comes before a container and after it; what needs longer before it asks again.
AROUND: Final = timedelta(minutes=1)


class Stopped(Exception):
    """The attempt ends before its container was started."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason.name)
        self.outcome = Outcome(reason=reason, detail=detail)


def length_of(timeout: timedelta, grace: timedelta) -> float:
    """Return for how many seconds an attempt needs its share at most, from now on."""
    return (AROUND + timeout + grace).total_seconds()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One attempt's way to its share.

    Attributes:
        check: called again and again; what it raises ends the wait.
        tell: called now and then with what it waits for, as a JSON object; with nothing when it goes on.
    """

    site: Site
    file: LeaseFile
    spec: ExperimentSpec
    check: Callable[[], object]
    tell: Callable[[str], object]

    def take(self) -> tuple[str, ...]:
        """Return the devices it has, once it has all that it asks for.

        Raises:
            Stopped: the machine lacks something for long, or another one is idle.
        """
        ledger = self.site.ledger
        if ledger is None:
            return self.site.gpus[: self.spec.gpus]
        start, _ = self._ask(ledger)
        return start.devices if start and not start.at_seconds else self._wait(ledger)

    def keep(self, devices: tuple[str, ...]) -> tuple[str, ...]:
        """Return the devices it goes on with, now that its container is to be started: other ones, if it took long.

        Memory of theirs that is in use may come back within seconds, and is waited for.

        Raises:
            Stopped: one of them is sick, gone or in use by somebody else: the experiment is for another worker.
        """
        kept = devices if self._has_time else self.take()
        held = self.site.device
        unfit = held.check_before_start(kept, wait=self._pause) if held else None
        if unfit:
            raise Stopped(Reason.DEVICE_FAILURE, unfit.detail)
        return kept

    @property
    def _has_time(self) -> bool:
        """Whether its share is its own for as long as it needs it."""
        entry, ledger = self.file.kept.entry, self.site.ledger
        if ledger is None or entry is None:
            return True
        return ledger.remaining_seconds(entry) >= self._length_seconds - AROUND.total_seconds()

    def _pause(self, seconds: float) -> None:
        self.check()
        time.sleep(seconds)

    @property
    def _length_seconds(self) -> float:
        return length_of(self.spec.timeout, self.site.grace)

    def _ask(self, ledger: Ledger) -> tuple[Start | None, str]:
        """Return when it can start, and else what is in the way."""
        try:
            start = ledger.take(self.file, self.spec.resources, seconds=self._length_seconds)
        except RuntimeFailure as error:  # another worker's trouble, for which no attempt is to pay
            return None, error.message
        return start, "so much is not fit to be used now"

    def _wait(self, ledger: Ledger) -> tuple[str, ...]:
        began_seconds = lacks_since_seconds = looked_seconds = time.monotonic()
        told_seconds, idle = 0.0, frozenset[NodeId]()
        log.info("attempt.waiting", extra={"experiment": self.file.kept.experiment_id, "wants": self._wants})
        while True:
            self.check()
            (start, lack), now_seconds = self._ask(ledger), time.monotonic()
            if start and not start.at_seconds:
                self.tell("")
                waited_seconds = round(now_seconds - began_seconds, 1)
                log.info("attempt.goes_on", extra={"experiment": self.file.kept.experiment_id, "after": waited_seconds})
                return start.devices
            lacks_since_seconds = now_seconds if start else lacks_since_seconds
            if now_seconds - lacks_since_seconds >= LACK.total_seconds():
                raise Stopped(Reason.DOES_NOT_FIT, f"asks for {self._wants}, and {lack}")
            if now_seconds - looked_seconds >= LOOK_ELSEWHERE.total_seconds():
                looked_seconds, idle = now_seconds, self._look_elsewhere(idle)
            if not told_seconds or now_seconds - told_seconds >= TELL_EVERY.total_seconds():
                told_seconds = now_seconds
                self.tell(self._describe(start))
            time.sleep(LOOK_EVERY.total_seconds())

    def _look_elsewhere(self, before: frozenset[NodeId]) -> frozenset[NodeId]:
        """Return which other nodes are idle now.

        Raises:
            Stopped: one of them was so before, and the experiment is for it; once, since here it loses its place.
        """
        kept = self.file.kept
        idle = find_idle(self.site, queue=kept.queue, resources=self.spec.resources)
        if idle & before and not has_left(self.site, kept.experiment_id):
            note_leaving(self.site, kept.experiment_id)
            raise Stopped(Reason.DOES_NOT_FIT, f"waited for {self._wants}, and {LEFT}: {min(idle & before)}")
        return idle

    @property
    def _wants(self) -> str:
        return describe(self.spec.resources)

    def _describe(self, start: Start | None) -> str:
        """Return what to tell of the wait: what for, and how long it can last, where that can be said."""
        longest = {"at_most": format_duration(timedelta(seconds=round(start.at_seconds)))} if start else {}
        return json.dumps({"waits_for": self._wants, **longest})


def count_left(site: Site, file: LeaseFile, message: Verified) -> None:
    """Have the ledger count what runs and was not counted by its worker: its memory would be taken for a stranger's.

    Such a worker had no slot, or was of a version without a ledger, and knew no devices but its own.
    """
    if site.ledger is None or file.kept.entry is not None:
        return
    with suppress(JobqueueError, OSError):  # whoever supervises it opens it too, and says why that cannot be
        spec = open_sealed(message, keys=site.keys).spec
        since_seconds, seconds = file.kept.started_at_seconds, length_of(spec.timeout, site.grace)
        asked = site.ledger.ask(spec.resources, seconds=seconds, since_seconds=since_seconds)
        devices = site.gpus[: spec.gpus]
        file.update(entry=replace(asked, is_granted=True, until_seconds=since_seconds + seconds, devices=devices))


def describe(resources: Resources) -> str:
    """Return what was asked of a machine's devices, cores and memory, in words."""
    words = [f"{resources.cpus:g} cpus", describe_size(resources.memory_bytes)]
    if resources.gpus:
        each = f" of {describe_size(resources.gpu_memory_bytes)}" if resources.gpu_memory_bytes else ""
        words.insert(0, f"{resources.gpus} GPU{'s' if resources.gpus > 1 else ''}{each}")
    return ", ".join(words)
