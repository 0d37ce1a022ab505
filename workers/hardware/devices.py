"""What GPUs are here: the values, and the port that tells them.

A device is what can be given to one experiment as a whole: a GPU, or one instance of a GPU in MIG mode. A GPU in MIG
mode is no device itself. There is no table of models: what the driver says is what is offered.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Presence(StrEnum):
    """What is known of this machine's GPUs."""

    PRESENT = "PRESENT"  # there is a driver that answers, and at least one GPU
    ABSENT = "ABSENT"  # a CPU node: no driver, one that cannot be used, or no GPU
    UNKNOWN = "UNKNOWN"  # the driver hangs, or what asks it has died


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, as it was when somebody looked.

    Attributes:
        uuid: `GPU-…` or `MIG-…`; what it is pinned, locked and reported by.
        index: of the GPU, in the driver's order, which may change with every start of the machine.
        mig_index: of the instance on its GPU; None for a whole GPU.
        parent_uuid: of the GPU that an instance belongs to; empty for a whole GPU.
        minor: the number in the name of its GPU's file, `/dev/nvidia<minor>`; None where the driver does not tell.
        instance: the driver's numbers of the GPU instance and of its compute instance; None for a whole GPU.
        name: as the driver calls it; may hold any character that can be printed.
        memory_bytes: all of it; 0 where the driver does not tell.
        free_bytes, used_bytes: without what the driver itself keeps, where it tells them apart.
        utilisation_percent: None where the driver does not tell, as for instances.
        ecc_uncorrected: errors since the driver was loaded; None without ECC.
        xids: how often each error of the driver was seen since somebody began to look.
        process_ids: of those that compute on it, as the driver counts them.
        recovery: what the driver asks to be done before it is used again, such as `reset the GPU`; empty when nothing.
        fault: why it cannot be read; empty while it can.
    """

    uuid: str
    index: int
    mig_index: int | None = None
    parent_uuid: str = ""
    minor: int | None = None
    instance: tuple[int, int] | None = None
    name: str = ""
    memory_bytes: int = 0
    free_bytes: int = 0
    used_bytes: int = 0
    utilisation_percent: int | None = None
    ecc_uncorrected: int | None = None
    xids: Mapping[int, int] = field(default_factory=dict)
    process_ids: tuple[int, ...] = ()
    recovery: str = ""
    fault: str = ""

    @property
    def place(self) -> str:
        """Its index as the variables of CUDA write it: `3`, or `3:0` for the first instance of that GPU."""
        return str(self.index) if self.mig_index is None else f"{self.index}:{self.mig_index}"


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """All devices of this machine, as they were when somebody looked.

    Attributes:
        detail: why they are absent or unknown, in a sentence; empty when they are present.
        devices: in the driver's order.
        problems: what is there and is no device, each with why.
        driver_version, cuda_version: such as `550.54.15` and `12.4`; empty where the driver does not tell.
    """

    presence: Presence
    detail: str = ""
    devices: tuple[Device, ...] = ()
    problems: tuple[str, ...] = ()
    driver_version: str = ""
    cuda_version: str = ""

    def find(self, uuid: str) -> Device | None:
        """Return the device, or None when it is not there (any more)."""
        return next((device for device in self.devices if device.uuid == uuid), None)


class Devices(Protocol):
    """What tells the devices of this machine; may be asked from any thread."""

    def look(self) -> Inventory:
        """Return what is there now; never raises, and answers within a time limit whatever the driver does."""
        ...

    def close(self) -> None:
        """Stop telling, within a moment, also while the driver hangs."""
        ...
