"""Which files of /dev a program opens to use its devices; with these and no others it can use no other device."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from jobqueue.errors import RuntimeFailure
from workers.hardware.devices import Device, Inventory

# Those of every program: the driver's own, and unified memory's.
_SHARED: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
_CAPABILITIES: Final = Path("/proc/driver/nvidia/capabilities")
_CAPABILITY: Final = re.compile(r"^DeviceFileMinor:\s*(\d+)$", re.MULTILINE)


def find_nodes(inventory: Inventory, uuids: Iterable[str], *, capabilities: Path = _CAPABILITIES) -> tuple[str, ...]:
    """Return the files of these devices, by their names below /dev; none for none.

    Args:
        inventory: as the driver tells it now: after a start of the machine a device may have another file.
        uuids: of whole GPUs and of instances.
        capabilities: where the driver says which files open an instance.

    Raises:
        RuntimeFailure: a device is not there, or the driver does not tell its files.
    """
    own = [name for uuid in uuids for name in _find_own(uuid, inventory, capabilities)]
    return tuple(dict.fromkeys([*_SHARED, *own])) if own else ()


def _find_own(uuid: str, inventory: Inventory, capabilities: Path) -> Iterator[str]:
    device = inventory.find(uuid)
    if device is None or device.minor is None:
        why = inventory.detail or "the driver does not tell it"
        raise RuntimeFailure(f"not known which file of /dev is the device {uuid}: {why}", hint="is its driver well?")
    yield f"nvidia{device.minor}"
    if device.mig_index is not None:
        # The GPU's file alone opens none of its instances.
        yield from _find_capabilities(device, capabilities / f"gpu{device.minor}" / "mig")


def _find_capabilities(device: Device, folder: Path) -> Iterator[str]:
    gpu_instance, compute_instance = device.instance or (None, None)
    of_gpu = folder / f"gi{gpu_instance}"
    for place in (of_gpu, of_gpu / f"ci{compute_instance}"):
        try:
            (minor,) = _CAPABILITY.findall((place / "access").read_text())
        except (OSError, ValueError) as error:
            raise RuntimeFailure(f"not known which file of /dev opens the device {device.uuid}: {error}") from error
        yield f"nvidia-caps/nvidia-cap{minor}"
