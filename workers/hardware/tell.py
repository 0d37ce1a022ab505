"""What this machine's devices are, as one line of JSON on stdout, for whoever asks in a process of its own.

python -m workers.hardware.tell
"""

import json
import logging
from dataclasses import asdict

from jobqueue.errors import InvalidSetting
from workers.hardware.devices import Device
from workers.hardware.fitness import check, check_free
from workers.hardware.nvml import NvmlDevices
from workers.hardware.stock import take_stock


def main() -> None:
    """Tell presence, detail, driver, and of each device what it is, whether it may be offered, and what is wrong."""
    logging.disable()
    devices = NvmlDevices()
    try:
        stock = take_stock(devices)
        inventory, offered, wrong = stock.inventory, {device.uuid for device in stock.devices}, ""
    except InvalidSetting as error:
        inventory, offered, wrong = devices.look(), set(), f"{error.message} ({error.hint})"
    finally:
        devices.close()
    told = {
        "presence": inventory.presence,
        "detail": wrong or inventory.detail or "; ".join(inventory.problems),
        "driver": inventory.driver_version,
        "devices": [{**_describe(device), "is_offered": device.uuid in offered} for device in inventory.devices],
    }
    print(json.dumps(told))  # noqa: T201 - that is what it is for


def _describe(device: Device) -> dict[str, object]:
    known = asdict(device)
    unfit = check(device, since=device) or check_free(device)
    shown = {name: known[name] for name in ("uuid", "name", "memory_bytes", "used_bytes", "utilisation_percent")}
    return {**shown, "unfit": unfit.detail if unfit else ""}


if __name__ == "__main__":
    main()
