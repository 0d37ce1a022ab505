"""Who serves request queues now, and who is not to: a port of the registry, and the values that pass through it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.resources import Offer

TAKING: Final = "OK"
DRAINING: Final = "DRAINING"


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """What a device showed when its worker looked at it last.

    Attributes:
        name: as its driver calls it.
        memory_bytes, used_bytes: all of its memory, and what of it is in use by anybody.
        utilisation_percent: None where the driver does not tell.
    """

    uuid: str
    name: str = ""
    memory_bytes: int = 0
    used_bytes: int = 0
    utilisation_percent: int | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """One worker that serves queues now; a node is all of those with one `node_id`.

    Attributes:
        state: OK, DRAINING, or what is wrong with it or its node, such as DISK_FULL; it takes messages only while OK.
        detail: the evidence of what is wrong, in a sentence; empty when nothing is.
        experiment_ids: what it runs.
        places: how many it may run at once.
        slot: what it serves of its machine, `cpu` or `gpu0`; empty for a worker that was started without one.
        devices: UUIDs of the devices that it has.
        gauges: of these.
        takes_first: it serves what goes ahead of the others of a queue; older versions do not say so, and some do not.
        host: of its machine.
        version: of jobqueue.
        started_at: when it was started, by its machine's clock; None when it does not say.
        free_disk_bytes: where its work lies; None when it does not say.
        networks, images: what specs may ask for, the images as patterns; empty when it does not say.
        max_timeout_seconds: that a spec may ask for; None when it does not say.
    """

    worker_id: WorkerId
    node_id: NodeId
    queues: tuple[str, ...]
    offer: Offer
    runtime: str
    state: str = TAKING
    detail: str = ""
    experiment_ids: tuple[ExperimentId, ...] = ()
    places: int = 1
    slot: str = ""
    devices: tuple[str, ...] = ()
    gauges: tuple[Gauge, ...] = ()
    takes_first: bool = False
    host: str = ""
    version: str = ""
    started_at: datetime | None = None
    free_disk_bytes: int | None = None
    networks: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    max_timeout_seconds: float | None = None

    @property
    def condition(self) -> str:
        """Its state as people read it: `OK`, `DRAINING`, `UNHEALTHY(DISK_FULL)`."""
        return self.state if self.state in (TAKING, DRAINING) else f"UNHEALTHY({self.state})"


@dataclass(frozen=True, kw_only=True)
class Drain:
    """What an operator wants of a node or a worker: that it takes no new work, until it is resumed.

    Attributes:
        target: the id of a node, or of one worker.
        is_hurried: what runs is handed back at once; else it goes on to its end.
    """

    target: str
    is_hurried: bool = False


class Workers(Protocol):
    """Who is there. A record vanishes by itself when it is not announced again in time; what is to drain stays."""

    def announce(self, worker: WorkerRecord, *, ttl: timedelta) -> Drain | None:
        """Say that it is there, and return what an operator wants of it or its node; None when it is to work."""
        ...

    def leave(self, worker_id: WorkerId) -> None:
        """Say that it has gone."""
        ...

    def present(self) -> list[WorkerRecord]:
        """Return who is there."""
        ...

    def drain(self, drain: Drain) -> None:
        """Keep what an operator wants, whether or not anybody is there; of one target the last one counts."""
        ...

    def resume(self, target: str) -> bool:
        """Take that back; tells whether it was wanted."""
        ...

    def drains(self) -> list[Drain]:
        """Return all that operators want, by target."""
        ...
