"""Who serves request queues now: a port of the registry, and the value that passes through it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.resources import Offer


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """One worker that serves queues now.

    Attributes:
        slot: what it serves of its machine, `cpu` or `gpu0`; empty for a worker that was started without one.
        devices: UUIDs of the devices that it has.
    """

    worker_id: WorkerId
    node_id: NodeId
    queues: tuple[str, ...]
    offer: Offer
    runtime: str
    state: str = "OK"
    experiment_id: ExperimentId | None = None
    slot: str = ""
    devices: tuple[str, ...] = ()


class Workers(Protocol):
    """Who is there. A record vanishes by itself when it is not announced again in time."""

    def announce(self, worker: WorkerRecord, *, ttl: timedelta) -> None:
        """Say that it is there."""
        ...

    def leave(self, worker_id: WorkerId) -> None:
        """Say that it has gone."""
        ...

    def present(self) -> list[WorkerRecord]:
        """Return who is there."""
        ...
