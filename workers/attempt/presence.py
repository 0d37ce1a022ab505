"""Saying that a worker is there and how it is, and learning what an operator wants of it."""

import logging
import socket
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from jobqueue.errors import JobqueueError
from jobqueue.ids import ExperimentId
from jobqueue.registry.presence import DRAINING, TAKING, Drain, Gauge, WorkerRecord
from workers.attempt.site import Site
from workers.hardware.devices import Device

log = logging.getLogger(__name__)

# The record goes to the registry every few seconds, and to everybody who submits.
_MAX_IMAGES: Final = 50


class Presence:
    """One worker's record in the registry; any thread may announce it.

    Args:
        site: the worker's ports.
        queues: the request queues that it serves; may be set anew.
        places: how many experiments it may run at once.
        running: tells what it runs now.
        seen: tells its devices as they were when somebody looked last.
        hand_back: called while an operator wants everything back that runs here; may be called again and again.

    Attributes:
        wish: what an operator wants of the worker or its node, as it was told last; None: that it works.
        queues: the request queues that it serves now.
        is_leaving: the worker ends, and is announced as draining.
    """

    def __init__(
        self,
        site: Site,
        *,
        queues: tuple[str, ...],
        places: int,
        running: Callable[[], Iterable[ExperimentId]],
        seen: Callable[[], Iterable[Device]],
        hand_back: Callable[[], None],
    ) -> None:
        self.wish: Drain | None = None
        self.is_leaving = False
        self.queues = queues
        self._site, self._places = site, places
        self._running, self._seen, self._hand_back = running, seen, hand_back
        self._started_at, self._version = datetime.now(UTC), _find_version()

    def announce(self) -> None:
        """Say that it is there and how it is, and learn what an operator wants; a registry that is away is logged."""
        try:
            wish = self._site.registry.workers.announce(self._describe(), ttl=self._site.lease)
        except JobqueueError as error:
            log.warning("worker.not_announced", extra={"error": error.message})
            return
        if wish != self.wish:
            log.info("worker.drained" if wish else "worker.resumed", extra={"worker": self._site.worker_id})
            self.wish = wish
            self.announce()
        elif wish and wish.is_hurried:
            self._hand_back()

    def compare_clocks(self) -> None:
        """Let the node's health know how far this machine's clock is from the registry's, if that answers."""
        sent_at = datetime.now(UTC)
        try:
            told_at = self._site.registry.ping()
        except JobqueueError:
            return
        self._site.health.note_clock(sent_at + (datetime.now(UTC) - sent_at) / 2 - told_at)

    def leave(self) -> None:
        """Say that it has gone; a registry that is away is logged."""
        try:
            self._site.registry.workers.leave(self._site.worker_id)
        except JobqueueError as error:
            log.warning("worker.leave_not_recorded", extra={"error": error.message})

    def _describe(self) -> WorkerRecord:
        site = self._site
        is_draining = self.is_leaving or self.wish is not None
        return WorkerRecord(
            worker_id=site.worker_id,
            node_id=site.node_id,
            queues=self.queues,
            offer=site.best_offer,
            runtime=site.runtime.name,
            state=DRAINING if is_draining else site.health.trouble or TAKING,
            detail=site.health.detail,
            experiment_ids=tuple(sorted(set(self._running()))),
            places=self._places,
            slot=site.slot,
            devices=site.gpus,
            gauges=tuple(_gauge(device) for device in self._seen()),
            takes_first=True,
            host=socket.gethostname(),
            version=self._version,
            started_at=self._started_at,
            free_disk_bytes=site.health.free_bytes,
            networks=site.policy.networks,
            images=site.policy.images if len(site.policy.images) <= _MAX_IMAGES else (),
            max_timeout_seconds=site.policy.max_timeout.total_seconds(),
        )


def _gauge(device: Device) -> Gauge:
    return Gauge(
        uuid=device.uuid,
        name=device.name,
        memory_bytes=device.memory_bytes,
        used_bytes=device.used_bytes,
        utilisation_percent=device.utilisation_percent,
    )


def _find_version() -> str:
    try:
        return version("jobqueue")
    except PackageNotFoundError:  # run from a folder of sources
        return ""
