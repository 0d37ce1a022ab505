"""What one worker of a machine serves: one device, or the cores that no device needs.

A slot is written `cpu`, `gpu0`, or `gpu0=GPU-8932f937-…`: with a UUID it is that device wherever the driver lists it
now, without one it is the first of those that may be offered.
"""

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from jobqueue.errors import InvalidSetting
from workers.hardware.devices import Device, Devices
from workers.hardware.stock import take_stock

CPU: Final = "cpu"
_SLOT: Final = re.compile(r"cpu|gpu(\d{1,4})(?:=([\w./:-]+))?")
_DRIVER: Final = "libnvidia-ml.so.1"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One worker's share of a machine.

    Attributes:
        name: `cpu` or `gpu<number>`; what its worker is called before the `@`.
        number: which of the devices that may be offered; None for the CPU slot.
        uuid: of its device; empty where the number says which.
    """

    name: str
    number: int | None = None
    uuid: str = ""

    @property
    def has_device(self) -> bool:
        """Whether it serves a device."""
        return self.number is not None

    def __str__(self) -> str:
        return f"{self.name}={self.uuid}" if self.uuid else self.name


def parse_slot(text: str) -> Slot:
    """Return the slot of that name.

    Raises:
        InvalidSetting: there is none that is called so.
    """
    found = _SLOT.fullmatch(text)
    if not found:
        raise InvalidSetting(
            f"not a slot: {text!r}", hint="use cpu, gpu0, gpu1 and so on; leave it out for all of them"
        )
    number, uuid = found.groups()
    if number is None:
        return Slot(name=CPU)
    return Slot(name=f"gpu{int(number)}", number=int(number), uuid=uuid or "")


def make_slots(devices: Sequence[Device]) -> tuple[Slot, ...]:
    """Return the slots of a machine: one for each device, and one for its cores."""
    gpus = (Slot(name=f"gpu{number}", number=number, uuid=each.uuid) for number, each in enumerate(devices))
    return (*gpus, Slot(name=CPU))


def find_device(slot: Slot, devices: Devices) -> Device:
    """Return the device that a slot serves, as it is now.

    Raises:
        InvalidSetting: it is not there, or may not be offered.
    """
    stock = take_stock(devices)
    if slot.uuid:
        device = stock.inventory.find(slot.uuid)
        if device is None:
            raise InvalidSetting(f"{slot.uuid}, the device of {slot.name}, is not there", hint=stock.inventory.detail)
        return device
    with suppress(IndexError):
        return stock.devices[slot.number or 0]
    raise InvalidSetting(
        f"there is no {slot.name}: {len(stock.devices)} devices may be offered here",
        hint=stock.inventory.detail or "see the settings CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES",
    )


def has_driver() -> bool:
    """Tell, without starting anything, whether there may be devices: a machine without a driver pays for none."""
    if importlib.util.find_spec("pynvml") is None:
        return False
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return True
