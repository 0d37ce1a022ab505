"""Which devices may be offered, where CUDA_VISIBLE_DEVICES or NVIDIA_VISIBLE_DEVICES was set before a worker started.

Both are read alike, and what both allow is offered, in the order of CUDA_VISIBLE_DEVICES:

- a UUID, or as much of its start (with `GPU-` or `MIG-`) as fits one device only;
- an index (`2`) or the place of an instance (`2:0`), with a warning: the driver's order may change when the machine
  starts, and CUDA's own order is another one unless CUDA_DEVICE_ORDER is PCI_BUS_ID;
- a GPU in MIG mode, by either, stands for all of its instances;
- `all` is no restriction; nothing, `none`, `void`, `-1` and `NoDevFiles` offer nothing.

CUDA stops silently at the first word that it does not know. Here only `-1`, which is meant to stop it, does: anything
else that names no device is a mistake, and would cost a machine its GPUs without a word.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from jobqueue.errors import InvalidSetting
from workers.hardware.devices import Device

VARIABLES: Final = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
_NOTHING: Final = frozenset({"", "none", "void", "nodevfiles"})
_ALL: Final = "all"
_STOP: Final = "-1"
_PLACE: Final = re.compile(r"\d+(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class Visible:
    """What may be offered.

    Attributes:
        devices: in the order in which they were named.
        warnings: what whoever set the variables should know, each a sentence.
    """

    devices: tuple[Device, ...]
    warnings: tuple[str, ...] = ()


def restrict(devices: Sequence[Device], environ: Mapping[str, str]) -> Visible:
    """Return those devices that the variables allow; all where none of them is set.

    Raises:
        InvalidSetting: a variable names a device that is not there, or more than one; it says which ones are.
    """
    allowed, warnings = tuple(devices), []
    # The last one read gives the order.
    for variable in reversed(VARIABLES):
        if variable in environ:
            named, said = _read(variable, environ[variable], devices)
            allowed = tuple(device for device in named if device in allowed)
            warnings += said
    return Visible(devices=allowed, warnings=tuple(warnings))


def is_restricted(environ: Mapping[str, str]) -> bool:
    """Tell whether any of the variables says something."""
    return any(environ.get(variable, _ALL).strip().lower() != _ALL for variable in VARIABLES)


def _read(variable: str, value: str, devices: Sequence[Device]) -> tuple[list[Device], list[str]]:
    words = [word.strip() for word in value.split(",")]
    if [word.lower() for word in words] == [_ALL]:
        return list(devices), []
    if len(words) == 1 and words[0].lower() in _NOTHING:
        return [], []
    warnings = []
    if _STOP in words[:-1]:
        warnings.append(f"{variable}={value}: what stands behind {_STOP} is not used, as CUDA does not")
    words = words[: words.index(_STOP)] if _STOP in words else words
    if any(_PLACE.fullmatch(word) for word in words):
        warnings.append(
            f"{variable}={value} names devices by index, and the order may be another one after the next start: "
            f"use UUIDs ({_list(devices)})"
        )
    found = [device for word in words for device in _find(variable, word, devices)]
    return list({device.uuid: device for device in found}.values()), warnings


def _find(variable: str, word: str, devices: Sequence[Device]) -> list[Device]:
    exact = [device for device in devices if word in (device.place, device.uuid)]
    whole = [device for device in devices if device.mig_index is not None and word == str(device.index)]
    started = {_start(device, word): device for device in devices}
    started.pop("", None)
    if exact or whole:
        return exact or whole
    if len(started) == 1:
        (uuid,) = started
        return [device for device in devices if uuid in (device.uuid, device.parent_uuid)]
    wrong = f"fits {len(started)} devices" if started else "names no device that is here"
    raise InvalidSetting(f"{variable}: {word!r} {wrong}", hint=f"here are: {_list(devices)}; unset it to offer all")


def _start(device: Device, word: str) -> str:
    """Return the UUID, the device's or its GPU's, that begins with the word; empty when none does."""
    if not word.upper().startswith(("GPU-", "MIG-")):
        return ""
    uuids = (device.uuid, device.parent_uuid)
    return next((uuid for uuid in uuids if uuid.lower().startswith(word.lower())), "")


def _list(devices: Sequence[Device]) -> str:
    return ", ".join(f"{device.place} = {device.uuid}" for device in devices) or "none"
