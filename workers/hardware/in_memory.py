"""Devices that are only said to be there, for tests and for trying things out without a GPU."""

from workers.hardware.devices import Device, Inventory, Presence


class MemoryDevices:
    """Tells what it was told.

    Args:
        devices: what is there; none is a CPU node.

    Attributes:
        inventory: what `look` returns; may be replaced at any time.
    """

    def __init__(self, *devices: Device) -> None:
        self.inventory = Inventory(presence=Presence.ABSENT, detail="no GPU was said to be there")
        self._is_closed = False
        if devices:
            self.show(*devices)

    def show(self, *devices: Device) -> None:
        """Let these be there from now on."""
        self.inventory = Inventory(presence=Presence.PRESENT, devices=devices)

    def look(self) -> Inventory:
        """Return what is said to be there."""
        return Inventory(presence=Presence.UNKNOWN, detail="closed") if self._is_closed else self.inventory

    def close(self) -> None:
        """Stop telling."""
        self._is_closed = True
