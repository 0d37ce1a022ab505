"""What an attempt needs of its node, handed over by the composition root."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from jobqueue.brokers.base import Deliveries
from jobqueue.ids import NodeId, WorkerId
from jobqueue.keys import KeyRing
from jobqueue.registry.base import Registry
from jobqueue.resources import Offer
from jobqueue.storage import Allowed
from jobqueue.storage.base import Store
from workers.attempt.health import NodeHealth
from workers.attempt.input_cache import InputCache
from workers.attempt.ledger import Ledger
from workers.attempt.reporting import Outbox
from workers.attempt.runtimes.base import ContainerRuntime
from workers.hardware.holding import HeldDevice


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What an operator allows on this node.

    Attributes:
        images: shell patterns, one of which an image must match.
        networks: what specs may ask for.
        max_timeout: of one attempt.
        log_limit_bytes: of one attempt's output.
        platform_budget: attempts before ATTEMPTS_EXHAUSTED.
    """

    images: tuple[str, ...]
    networks: tuple[str, ...]
    max_timeout: timedelta
    log_limit_bytes: int
    platform_budget: int = 5


@dataclass(frozen=True, kw_only=True)
class Site:
    """One worker's ports and limits.

    Attributes:
        lease: how long a lease lasts from each renewal.
        grace: between SIGTERM and SIGKILL.
        folder: where attempts and caches lie.
        inputs: what is kept there of inputs and workspaces.
        leases: where the node's lease files lie.
        slot: what the worker serves of its machine; empty for one that was started without.
        gpus: UUIDs of the devices that this worker watches.
        device: the one that it watches; None for CPU work.
        ledger: who has what of the machine; None for a worker that was started without a slot, which asks nobody.
        allowed: what inputs may be read from beside the store.
    """

    worker_id: WorkerId
    node_id: NodeId
    registry: Registry
    deliveries: Deliveries
    store: Store
    runtime: ContainerRuntime
    health: NodeHealth
    keys: KeyRing
    outbox: Outbox
    offer: Offer
    policy: Policy
    lease: timedelta
    grace: timedelta
    folder: Path
    inputs: InputCache
    leases: Path
    slot: str = ""
    gpus: tuple[str, ...] = ()
    device: HeldDevice | None = None
    ledger: Ledger | None = None
    allowed: Allowed = field(default_factory=Allowed)

    @property
    def best_offer(self) -> Offer:
        """What an experiment can get here at best: of all devices of the machine, from a worker that has one."""
        if self.ledger is None or not self.gpus:
            return self.offer
        sizes = tuple(slot.device_bytes for slot in self.ledger.machine().slots if slot.device)
        return replace(self.offer, gpu_memory_bytes=sizes)

    @property
    def takes_more(self) -> bool:
        """Whether a worker that runs nothing has a use for a message: its device may serve another one's experiment."""
        return self.ledger is None or self.ledger.takes_more()

    @property
    def is_device_idle(self) -> bool:
        """Whether no experiment of this machine has this worker's device."""
        return self.ledger is None or not any(self.ledger.user_of(uuid) for uuid in self.gpus)
