"""What an engine does not keep for us, judged from its own description: what a worker only tells, and what it refuses.

An operator who knows better names a refused gap in JOBQUEUE_ACCEPTED_GAPS.
"""

import ipaddress
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_IWOTH, S_IXOTH
from typing import Any, Final
from urllib.parse import urlsplit

from jobqueue.errors import InvalidSetting

ACCEPTABLE: Final = ("bare-tcp", "no-limits", "no-seccomp", "open-socket", "unconfined")

# What an engine may lack without a word: rootless ones on an older kernel ignore limits silently.
_LIMITS: Final = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "cpus"}
_REMAPPED: Final = re.compile(r".*/(\d+)\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class EnginePolicy:
    """What an operator wants of the engine.

    Attributes:
        oci_runtime: the one of the engine's that containers are started with; empty: its default.
        accepted: names of gaps that are no reason to refuse.
        probe_image: has a `python`; what tries the network `egress` before any experiment gets it.
    """

    oci_runtime: str = ""
    accepted: tuple[str, ...] = ()
    probe_image: str = "python:3.12-alpine"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One thing that an engine does not keep.

    Attributes:
        name: by which an operator accepts it; empty where it is only told.
        text: completes "this engine ...".
    """

    name: str
    text: str


def find_gaps(facts: Mapping[str, Any], *, address: str) -> Iterator[Gap]:
    """Yield what an engine that describes itself by `facts` (its `info`) and listens at `address` does not keep."""
    if _is_bare(address) and not _is_loopback(address):
        yield Gap(
            name="bare-tcp", text=f"is asked without TLS that is checked ({address}): who reaches it is root there"
        )
    if _is_open(address):
        yield Gap(
            name="open-socket", text=f"takes orders from every user of this machine, each is root here ({address})"
        )
    missing = [what for key, what in _LIMITS.items() if facts.get(key) is False]
    if missing:
        yield Gap(name="no-limits", text=f"enforces no limit of {' and of '.join(missing)}")
    options = facts.get("SecurityOptions") or ()
    if not any("seccomp" in option and "unconfined" not in option for option in options):
        yield Gap(name="no-seccomp", text="filters no system calls (seccomp)")
    if facts.get("SwapLimit") is False:
        yield Gap(name="", text="limits no swap: beside its memory an experiment may fill the machine's")
    if not any(option.startswith(("name=apparmor", "name=selinux")) for option in options):
        yield Gap(name="", text="confines by no AppArmor and no SELinux")
    if not any(option.startswith(("name=userns", "name=rootless")) for option in options):
        yield Gap(name="", text="maps no users (userns-remap): root of a container that breaks out is root here")
    if facts.get("LiveRestoreEnabled") is False:
        yield Gap(name="", text="ends its containers when it is restarted (no live-restore)")


def find_flaw(facts: Mapping[str, Any], *, address: str, policy: EnginePolicy) -> str:
    """Return why no experiment may run on the engine, in words with the way out; empty when one may."""
    refused = [gap for gap in find_gaps(facts, address=address) if gap.name and gap.name not in policy.accepted]
    if refused:
        # All at once, with those that are accepted already: the setting is replaced by what is told here.
        names = ",".join(dict.fromkeys((*policy.accepted, *(gap.name for gap in refused))))
        told = ", and ".join(gap.text for gap in refused)
        return f"this engine {told} (mend it, or set JOBQUEUE_ACCEPTED_GAPS={names})"
    there = sorted(facts.get("Runtimes") or ())
    if policy.oci_runtime and policy.oci_runtime not in there:
        return f"this engine has no runtime {policy.oci_runtime!r} (JOBQUEUE_OCI_RUNTIME), it has {', '.join(there)}"
    if find_remapped_root(facts) and os.geteuid():
        return "this engine maps users (userns-remap), and only a worker that is root can give them their files"
    return ""


def describe_gaps(facts: Mapping[str, Any], *, address: str = "") -> str:
    """Return what an engine that describes itself by `facts` does not keep, as a sentence; empty when nothing."""
    told = [gap.text for gap in find_gaps(facts, address=address)]
    return f"this engine {', '.join(told)}" if told else ""


def find_remapped_root(facts: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return which user and group of this machine a container's root is where the engine maps users, else None.

    It tells by its folder alone, whose name is `<uid>.<gid>`.
    """
    if not any(option.startswith("name=userns") for option in facts.get("SecurityOptions") or ()):
        return None
    found = _REMAPPED.fullmatch(str(facts.get("DockerRootDir")))
    return (int(found[1]), int(found[2])) if found else None


def check_accepted(names: Collection[str]) -> None:
    """Refuse a name that is none.

    Raises:
        InvalidSetting: with those that there are.
    """
    if unknown := sorted(set(names) - set(ACCEPTABLE)):
        raise InvalidSetting(
            f"JOBQUEUE_ACCEPTED_GAPS: no such gap: {', '.join(unknown)}", hint=f"there are {', '.join(ACCEPTABLE)}"
        )


def _is_bare(address: str) -> bool:
    return urlsplit(address).scheme in ("tcp", "http")


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_open(address: str) -> bool:
    """Tell whether every user of this machine may command it: a port has no owner, a socket and its folders have."""
    if not address.startswith("unix://"):
        return _is_bare(address) and _is_loopback(address)
    path = Path(address.removeprefix("unix://"))
    try:
        return bool(path.stat().st_mode & S_IWOTH) and all(folder.stat().st_mode & S_IXOTH for folder in path.parents)
    except OSError:  # it is away, and is judged when it is back
        return False
