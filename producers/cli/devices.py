"""What GPUs this machine has, for `jobqueue doctor`: the compute-node side is asked, in a process of its own.

A driver may hang, and then so does whoever has loaded it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from jobqueue.quantities import describe_size

_WITHIN: Final = timedelta(seconds=90)
_PROGRAM: Final = "workers.hardware.tell"
_PRESENT: Final = "PRESENT"
_ABSENT: Final = "ABSENT"


@dataclass(frozen=True, kw_only=True)
class Told:
    """One thing to tell of this machine's devices; a fix where something is wrong."""

    text: str
    fix: str = ""


def describe_devices() -> Iterator[Told]:
    """Yield what there is to tell: a line for each device, or why there is none."""
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", _PROGRAM],
            capture_output=True,
            text=True,
            timeout=_WITHIN.total_seconds(),
            check=True,
        )
        told: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        yield Told(text=f"GPUs cannot be asked for: {type(error).__name__}", fix=f"python -m {_PROGRAM} says more")
        return
    if told["presence"] == _ABSENT:
        yield Told(text=f"no GPU: {told['detail']}")
    elif told["presence"] != _PRESENT:
        yield Told(text=f"GPUs are not known: {told['detail']}", fix="look at `nvidia-smi` and the kernel's log")
    elif told["detail"]:
        fix = "see CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES, and the driver"
        yield Told(text=f"not every GPU can be offered: {told['detail']}", fix=fix)
    for device in told["devices"]:
        yield _describe(device)


def _describe(device: dict[str, Any]) -> Told:
    size, used = describe_size(device["memory_bytes"]), describe_size(device["used_bytes"])
    text = f"{device['uuid']} {device['name']}, {size} of memory, {used} in use".replace("  ", " ")
    if device["unfit"]:
        return Told(
            text=f"{text}: {device['unfit']}", fix="a worker offers it once that is over; `nvidia-smi` says more"
        )
    return Told(text=text if device["is_offered"] else f"{text}; the variables for visible devices leave it out")
