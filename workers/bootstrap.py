"""The composition root of the compute-node side: from settings to everything that a worker process needs."""

import logging
import math
import os
import resource
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.config import Settings
from jobqueue.errors import JobqueueError, StoreUnavailable
from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.lifecycle import Reason
from jobqueue.resources import Resources
from jobqueue.storage import scope
from jobqueue.storage.base import check_store
from workers.attempt.health import NodeHealth
from workers.attempt.lease import RENEWALS_PER_LEASE
from workers.attempt.node_folder import open_node_folder
from workers.attempt.presence import Presence
from workers.attempt.queue_watch import QueueWatch
from workers.attempt.supervise import Attempt
from workers.composition import Share, hold_device, make_site
from workers.hardware.slots import Slot
from workers.rounds import Rounds

log = logging.getLogger(__name__)

FLUSH_REPORTS: Final = timedelta(seconds=5)
# Short enough that work whose queue was deleted ends within a minute.
LONGEST_BEAT: Final = timedelta(seconds=15)
_ATTRIBUTE: Final = "jobqueue_node"


@dataclass(frozen=True, kw_only=True)
class _Running:
    """What is known of an attempt that runs here; an adopted one has no delivery, and no properties of one."""

    experiment_id: ExperimentId
    properties: Mapping[str, Any] | None


class Node:
    """One worker process's ports, and what runs in it now.

    Args:
        settings: of this process.
        worker_name: Celery's node name, such as `cpu@host`.
        queues: the request queues it consumes.
        slot: what it serves of its machine; None for a worker that was started without one.
        places: how many experiments it may run at once.

    Attributes:
        folder: what this machine's workers share.
        companions: what was opened beside it, closed before it is.
        device: what it has alone; None for CPU work.
        presence: what the registry is told of it.
        served: how many experiments it has run.
        most: how many it runs at most; None: any number.

    Raises:
        InvalidSetting: on construction: a live worker of this node has the name or the device, the device is not there,
            or a folder cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        worker_name: str,
        queues: tuple[str, ...],
        slot: Slot | None = None,
        places: int = 1,
    ) -> None:
        self.settings = settings
        self.queues = queues
        self.folder = open_node_folder(settings.state_dir)
        self.companions = ExitStack()
        self._claim = self.folder.claim(WorkerId(worker_name))
        self.device = None
        if slot and slot.has_device:
            self.device = hold_device(slot, settings, folder=self.folder, owner=worker_name)
        self.broker: Broker = open_broker(settings.broker, lease=settings.lease, management_url=settings.management_url)
        share = Share(slot=slot, places=places, device=self.device)
        self.site = make_site(settings, broker=self.broker, worker_name=worker_name, folder=self.folder, share=share)
        self.served = 0
        self.most: int | None = None
        self.is_hurried = False
        self._is_stopping = False
        self._running: dict[Attempt, _Running] = {}
        self.presence = Presence(
            self.site,
            queues=queues,
            places=places,
            running=lambda: [running.experiment_id for running in self._now().values()],
            seen=lambda: (self.device.seen,) if self.device else (),
            hand_back=self._hand_back,
        )
        if self.site.ledger:
            self.site.ledger.is_withheld = lambda: self.presence.is_leaving or self.presence.wish is not None
        self._queue_watch = QueueWatch(self.broker.queues)
        self._lock = threading.Lock()
        self._keeping = threading.Lock()
        interval = min(settings.lease / RENEWALS_PER_LEASE, LONGEST_BEAT)
        self._pulse = Rounds("pulse", self._beat, every=lambda: interval)

    def start(self) -> None:
        """Say that it is there.

        Raises:
            InvalidSetting: the store cannot be trusted with results, or the container engine with experiments.
            NotFound, KeyRefused: a key is missing, or not to be used.
        """
        self.site.keys.check_node(self.queues)
        # Its memory has keys, and the secrets of what runs.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        runtime = self.site.runtime
        runtime.vet()
        # Beside: to try one may take as long as a pull.
        threading.Thread(target=self._try_networks, name="networks", daemon=True).start()
        if runtime.notice:
            log.warning("runtime.notice", extra={"runtime": runtime.name, "notice": runtime.notice})
        try:
            check_store(scope(self.site.store, queue=next(iter(self.queues), "")))
        except StoreUnavailable as error:
            log.warning("store.unavailable", extra={"error": error.message})
        self.presence.compare_clocks()
        self.health.start()
        self.presence.announce()
        self.health.on_change = self.presence.announce
        if self.device:
            self.device.is_idle = lambda: self.site.is_device_idle
            self.device.on_change = self.health.look
            self.device.start()
        self._pulse.start()

    @contextmanager
    def running(
        self, experiment_id: ExperimentId, attempt: Attempt, properties: Mapping[str, Any] | None
    ) -> Iterator[Attempt]:
        """Let others ask something of an attempt, and keep its delivery alive, while it runs.

        An attempt without `properties` was adopted: it has no delivery. One experiment may have several here, one for
        each delivery; all but one find the lease held.
        """
        with self._lock:
            self._running[attempt] = _Running(experiment_id=experiment_id, properties=properties)
        if self.presence.is_leaving:
            attempt.ask(Reason.DRAINED)
        try:
            yield attempt
        finally:
            # A delivery that was put off comes back in its own time: nothing keeps it alive from now on.
            with self._keeping, self._lock:
                self.served += attempt.has_begun
                del self._running[attempt]

    @property
    def health(self) -> NodeHealth:
        """Whether this machine can run anything now."""
        return self.site.health

    @property
    def still_runs(self) -> float:
        """How many experiments it may run before it ends, those that it runs included."""
        return math.inf if self.most is None else self.most - self.served

    @property
    def is_taking(self) -> bool:
        """Whether it takes messages now: it can run something, or is to try, and nobody wants it to drain."""
        return (self.health.is_fit or self.health.is_on_trial) and self.presence.wish is None

    @property
    def adopted(self) -> int:
        """How many attempts run here that an earlier worker has started; each takes a place."""
        return sum(running.properties is None for running in self._now().values())

    def may_try(self, busy: int) -> bool:
        """Tell whether it may begin another one beside `busy` that it has taken: where starts fail, one at a time."""
        started = sum(attempt.has_started for attempt, each in self._now().items() if each.properties is not None)
        return self.health.is_fit or busy <= started

    def promised(self) -> dict[ExperimentId, Resources]:
        """Return what is asked for by each experiment that an attempt runs for here."""
        with self._lock:
            return {running.experiment_id: attempt.resources for attempt, running in self._running.items()}

    def is_running(self, experiment_id: str) -> bool:
        """Tell whether an attempt of it runs here."""
        return any(running.experiment_id == experiment_id for running in self._now().values())

    def redelivered(self, experiment_id: str, properties: Mapping[str, Any]) -> None:
        """Keep the newer delivery of a running experiment alive from now on."""
        with self._lock:
            for attempt, running in self._running.items():
                if running.experiment_id == experiment_id and running.properties is not None:
                    self._running[attempt] = replace(running, properties=properties)

    def ask(self, experiment_id: str, reason: Reason) -> None:
        """Ask for the end of an experiment's attempts, if any runs here."""
        for attempt, running in self._now().items():
            if running.experiment_id == experiment_id:
                attempt.ask(reason)

    def serve(self, queues: tuple[str, ...]) -> None:
        """Say which request queues it serves from now on."""
        self.queues = self.presence.queues = queues
        self.presence.announce()

    def drain(self) -> None:
        """Ask for the end of everything that runs here; it is handed back."""
        self.presence.is_leaving = True
        self._hand_back()

    def _hand_back(self) -> None:
        for attempt in self._now():
            attempt.ask(Reason.DRAINED)

    def asked_to_stop(self, **_: Any) -> None:
        """Count the requests to stop: the first lets what runs finish, the second hands it back at once."""
        self.is_hurried, self._is_stopping = self._is_stopping, True

    def close(self) -> None:
        """Say that it has gone, send what is left to send, close everything."""
        self.companions.close()
        if self.device:
            self.device.close()
        self.health.close()
        self._pulse.close()
        self.site.outbox.close(FLUSH_REPORTS)
        self.presence.leave()
        self.site.runtime.close()
        self.broker.close()
        self.site.registry.close()
        os.close(self._claim)

    def _try_networks(self) -> None:
        for network in self.settings.networks:
            if fault := self.site.runtime.find_fault(network):
                log.warning("network.not_offered", extra={"network": network, "detail": fault})

    def _now(self) -> dict[Attempt, _Running]:
        with self._lock:
            return dict(self._running)

    def _beat(self) -> None:
        """Keep the deliveries of what runs, and the worker's own record, alive; end what has lost its queue."""
        self._abort_deleted()
        for attempt in self._now():
            self._keep_alive(attempt)
        self.presence.compare_clocks()
        self.presence.announce()

    def _keep_alive(self, attempt: Attempt) -> None:
        with self._keeping:
            running = self._now().get(attempt)
            if running is None or running.properties is None:
                return
            try:
                self.site.deliveries.keep_alive(running.properties)
            except JobqueueError as error:
                log.warning("delivery.not_kept_alive", extra={"error": error.message})

    def _abort_deleted(self) -> None:
        attempts = tuple(self._now())
        gone = self._queue_watch.gone(attempt.queue for attempt in attempts)
        for attempt in attempts:
            if attempt.queue in gone:
                attempt.ask(Reason.QUEUE_DELETED)


def attach(app: Any, node: Node) -> None:
    """Make a node known to the tasks and requests of an application."""
    setattr(app, _ATTRIBUTE, node)


def node_of(app: Any) -> Node:
    """Return the node of this worker's application.

    Raises:
        RuntimeError: the process is no worker.
    """
    node: Node | None = getattr(app, _ATTRIBUTE, None)
    if node is None:
        raise RuntimeError("experiments run in a worker only: start one with `celery -A jobqueue worker`")
    return node
