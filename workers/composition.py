"""From settings to the ports and limits of one worker."""

import os
from dataclasses import dataclass, replace
from urllib.parse import quote

from jobqueue.brokers.base import Broker
from jobqueue.config import Settings
from jobqueue.ids import WorkerId
from jobqueue.keys import KeyRing
from jobqueue.registry import open_registry
from jobqueue.resources import Offer
from jobqueue.storage import open_store
from workers.attempt.health import NodeHealth
from workers.attempt.node_folder import NodeFolder
from workers.attempt.reporting import Outbox
from workers.attempt.runtimes import open_runtime
from workers.attempt.site import Policy, Site
from workers.hardware.holding import HeldDevice
from workers.hardware.locks import open_device_locks
from workers.hardware.machine import measure_offer
from workers.hardware.nvml import NvmlDevices
from workers.hardware.slots import Slot
from workers.hardware.visible import VARIABLES


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one worker has of its machine.

    Attributes:
        slot: None for a worker that was started without one: it has all but the devices.
        places: how many experiments it may run at once.
        device: of its slot.
    """

    slot: Slot | None
    places: int
    device: HeldDevice | None


def hold_device(slot: Slot, settings: Settings, *, owner: str) -> HeldDevice:
    """Take the device of a slot for this process alone.

    Raises:
        InvalidSetting: it is not there, or another worker has it.
    """
    held = HeldDevice(slot, devices=NvmlDevices(), locks=open_device_locks(settings.state_dir), owner=owner)
    # For what this process itself may load; an experiment is told by its plan.
    os.environ.update(dict.fromkeys(VARIABLES, held.device.uuid))
    return held


def make_site(settings: Settings, *, broker: Broker, worker_name: str, folder: NodeFolder, share: Share) -> Site:
    """Open what attempts need of their node."""
    runtime = open_runtime(settings.runtime, state_dir=settings.state_dir)
    device = share.device
    return Site(
        worker_id=WorkerId(worker_name),
        node_id=folder.node_id,
        registry=open_registry(settings.registry),
        deliveries=broker.deliveries,
        store=open_store(settings.storage, endpoint=settings.storage_endpoint),
        runtime=runtime,
        health=NodeHealth(
            runtime,
            settings.cache_dir,
            floor_bytes=settings.disk_floor,
            judge_device=lambda: device.unfit if device else None,
        ),
        keys=KeyRing(settings.keys_dir),
        outbox=Outbox(broker.post, settings.state_dir / "reports" / quote(worker_name, safe="@")),
        offer=_make_offer(settings, share),
        policy=Policy(
            images=settings.images,
            networks=settings.networks,
            max_timeout=settings.max_timeout,
            log_limit_bytes=settings.log_limit,
        ),
        lease=settings.lease,
        grace=settings.grace,
        folder=settings.cache_dir,
        leases=folder.leases,
        slot=share.slot.name if share.slot else "",
        gpus=(device.device.uuid,) if device else (),
        endpoint=settings.storage_endpoint,
    )


def _make_offer(settings: Settings, share: Share) -> Offer:
    offer = measure_offer(settings.cache_dir)
    if share.device:
        return replace(offer, gpu_memory_bytes=(share.device.device.memory_bytes,))
    if share.slot:  # a place is a core; the work of the devices needs the others
        return replace(offer, cpus=min(offer.cpus, float(share.places)))
    return offer
