"""What a worker starts with: the devices that it may offer, told in the log once."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from workers.hardware.devices import Device, Devices, Inventory, Presence
from workers.hardware.visible import VARIABLES, is_restricted, restrict

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stock:
    """What is there at the start.

    Attributes:
        inventory: all that is here.
        devices: what may be offered, in the order in which it was named, else in the driver's; none on a CPU node.
    """

    inventory: Inventory
    devices: tuple[Device, ...] = ()


def take_stock(devices: Devices, environ: Mapping[str, str] | None = None) -> Stock:
    """Look once, and say in one line what is offered, or why nothing is; each doubt has a line of its own.

    A variable that names GPUs restricts nothing where no GPU is: such a node serves CPU queues.

    Args:
        devices: what tells them.
        environ: where CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES are looked up; by default this process's.

    Raises:
        InvalidSetting: one of the variables names a device that is not there.
    """
    environ = os.environ if environ is None else environ
    inventory = devices.look()
    if inventory.presence is Presence.UNKNOWN:
        log.warning("devices.unknown", extra={"detail": inventory.detail})
        return Stock(inventory=inventory)
    if inventory.presence is Presence.ABSENT:
        log.info("devices.none", extra={"detail": inventory.detail})
        return Stock(inventory=inventory)
    visible = restrict(inventory.devices, environ)
    for warning in visible.warnings:
        log.warning("devices.named", extra={"detail": warning})
    if not visible.devices:
        log.info("devices.none", extra={"detail": _why_none(inventory, environ)})
        return Stock(inventory=inventory)
    log.info("devices.found", extra=_describe(inventory, visible.devices))
    return Stock(inventory=inventory, devices=visible.devices)


def _why_none(inventory: Inventory, environ: Mapping[str, str]) -> str:
    if not inventory.devices or not is_restricted(environ):
        return "; ".join(inventory.problems) or "there is none"
    said = " and ".join(f"{name}={environ[name]}" for name in VARIABLES if name in environ)
    return f"{said} lets none of {len(inventory.devices)} be used (a container's own start may have set it)"


def _describe(inventory: Inventory, offered: tuple[Device, ...]) -> dict[str, object]:
    fields: dict[str, object] = {
        "devices": [device.uuid for device in offered],
        "count": len(offered),
        "here": len(inventory.devices),
        "driver": inventory.driver_version,
        "cuda": inventory.cuda_version,
    }
    return {**fields, "detail": "; ".join(inventory.problems)} if inventory.problems else fields
