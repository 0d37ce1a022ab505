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
from jobqueue.storage import Allowed, open_store, own_bucket
from jobqueue.storage.granted import GrantedStore
from jobqueue.storage.hosts import parse_hosts
from workers.attempt.health import NodeHealth
from workers.attempt.input_cache import InputCache
from workers.attempt.lease_files import read_boot_id
from workers.attempt.ledger import Ledger
from workers.attempt.node_folder import NodeFolder
from workers.attempt.reporting import Outbox
from workers.attempt.runtimes.image_cache import ImageCache
from workers.attempt.runtimes.opening import open_node_runtime
from workers.attempt.site import Policy, Site
from workers.hardware.custody_files import CustodyFiles
from workers.hardware.fitness import Unfit
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


def hold_device(slot: Slot, settings: Settings, *, folder: NodeFolder, owner: str) -> HeldDevice:
    """Take the device of a slot for this process alone; it is as sick as when its node knew it last.

    Raises:
        InvalidSetting: it is not there, or another worker has it.
    """
    kept = CustodyFiles(folder=folder.devices, boot_id=read_boot_id())
    locks = open_device_locks(settings.device_locks_dir)
    held = HeldDevice(slot, devices=NvmlDevices(), locks=locks, owner=owner, kept=kept)
    # For what this process itself may load; an experiment is told by its plan.
    os.environ.update(dict.fromkeys(VARIABLES, held.device.uuid))
    return held


def make_site(settings: Settings, *, broker: Broker, worker_name: str, folder: NodeFolder, share: Share) -> Site:
    """Open what attempts need of their node."""
    cache = settings.cache_dir
    images = ImageCache(folder=cache / "images", size_bytes=settings.image_cache_size, floor_bytes=settings.disk_floor)
    nodes_of = share.device.nodes_of if share.device else None
    runtime = open_node_runtime(settings, nodes_of=nodes_of, image_cache=images)
    device, offer = share.device, _make_offer(settings, share)
    ledger = _open_ledger(settings, folder, WorkerId(worker_name), share, cpus=offer.cpus) if share.slot else None
    keys, registry = KeyRing.of(settings), open_registry(settings.registry)
    granted = GrantedStore(registry.calls.ask, keys, ca=str(settings.tls_ca or ""))
    return Site(
        worker_id=WorkerId(worker_name),
        node_id=folder.node_id,
        registry=registry,
        deliveries=broker.deliveries,
        store=open_store(settings.storage, endpoint=settings.store_endpoint, granted=granted),
        runtime=runtime,
        health=NodeHealth(
            runtime,
            settings.cache_dir,
            floor_bytes=settings.disk_floor,
            judge_device=lambda: _judge(device, ledger),
        ),
        keys=keys,
        outbox=Outbox(broker.post, settings.state_dir / "reports" / quote(worker_name, safe="@"), keys=keys),
        offer=offer,
        policy=Policy(
            images=settings.images,
            networks=settings.networks,
            max_timeout=settings.max_timeout,
            log_limit_bytes=settings.log_limit,
        ),
        lease=settings.lease,
        grace=settings.grace,
        folder=cache,
        inputs=InputCache(folder=cache, size_bytes=settings.cache_size, floor_bytes=settings.disk_floor),
        leases=folder.leases,
        slot=share.slot.name if share.slot else "",
        gpus=(device.device.uuid,) if device else (),
        device=device,
        ledger=ledger,
        allowed=_allow(settings),
    )


def _allow(settings: Settings) -> Allowed:
    return Allowed(
        endpoint=settings.store_endpoint,
        buckets=(*own_bucket(settings.storage), *settings.input_buckets),
        hosts=parse_hosts(settings.input_hosts),
        within=settings.input_timeout,
    )


def _measure(settings: Settings) -> Offer:
    return measure_offer(settings.cache_dir, cpus=settings.cpus, memory_bytes=settings.memory)


def _open_ledger(settings: Settings, folder: NodeFolder, worker_id: WorkerId, share: Share, *, cpus: float) -> Ledger:
    whole = _measure(settings)
    ledger = Ledger(folder, worker_id=worker_id, cpus=whole.cpus, memory_bytes=whole.memory_bytes)
    ledger.join(cpus=cpus, device=share.device.device if share.device else None)
    return ledger


def _judge(device: HeldDevice | None, ledger: Ledger | None) -> Unfit | None:
    """Return why a worker's device takes no work, and let the others of its machine know."""
    unfit = device.unfit if device else None
    if ledger:
        ledger.note(unfit)
    return unfit


def _make_offer(settings: Settings, share: Share) -> Offer:
    offer = _measure(settings)
    if share.device:
        return replace(offer, gpu_memory_bytes=(share.device.device.memory_bytes,))
    if share.slot:  # a place is a core; the work of the devices needs the others
        return replace(offer, cpus=min(offer.cpus, float(share.places)))
    return offer
