"""What a node keeps of its leases on disk: until when an attempt may run, and what it takes to go on with it.

A lease in memory ends with its worker. The file stays, so that the guard can freeze what nobody may run any longer, and
a worker that comes back can adopt it. Files are replaced whole, so nobody reads half of one; nothing is synced, because
a machine that lost power has lost its containers too.
"""

import json
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.lifecycle import Outcome, Reason
from jobqueue.registry.base import Lease
from jobqueue.resources import Resources
from workers.hardware.timetable import Entry

log = logging.getLogger(__name__)

_LEASE: Final = ".lease"
_MESSAGE: Final = ".message"
_NEW: Final = ".new"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class KeptLease:
    """One attempt's lease as its node knows it.

    Attributes:
        worker_id: its holder.
        queue: the request queue that its message came through.
        boot_id: of the machine when it was granted; of another boot nothing runs any more.
        deadline_seconds: on `clock_seconds()`: past it the lease is in doubt and nothing of the attempt may run.
        started_at_seconds: when its container was started, on the same clock; 0 before.
        reports: how many were numbered before its end was known: what is told of that has the same numbers each time.
        stopping: why its container was told to end; None when it was not.
        ended: what its container's end means, once its outputs are stored; what is left is to tell everybody.
        manifest, manifest_sha256: store key and digest of these outputs' manifest; empty when none was written.
        entry: what it has of its machine, or waits for; None where nobody counts that.
    """

    experiment_id: ExperimentId
    attempt: int
    token: int
    worker_id: WorkerId
    queue: str
    boot_id: str
    deadline_seconds: float
    started_at_seconds: float = 0.0
    reports: int = 0
    stopping: Outcome | None = None
    ended: Outcome | None = None
    manifest: str = ""
    manifest_sha256: str = ""
    entry: Entry | None = None

    @property
    def lease(self) -> Lease:
        """What the registry knows it by."""
        return Lease(experiment_id=self.experiment_id, token=self.token, attempt=self.attempt)

    @property
    def name(self) -> str:
        """What its files, its folder and its container are called by."""
        return name_of(self.lease)

    def is_overdue(self, now_seconds: float) -> bool:
        """Tell whether nothing of it may run at `now_seconds` of `clock_seconds()`."""
        return now_seconds >= self.deadline_seconds or self.boot_id != read_boot_id()


class LeaseFile:
    """The file of an attempt that this process runs; any thread may keep it up to date.

    Args:
        folder: the node's lease files.
        kept: what it says at first.
    """

    def __init__(self, folder: Path, kept: KeptLease) -> None:
        self._folder = folder
        self._kept = kept
        self._is_removed = False
        self._lock = threading.Lock()

    @property
    def kept(self) -> KeptLease:
        """What it says."""
        return self._kept

    def create(self, message: bytes) -> None:
        """Write it, and first the sealed message, without which nobody could go on.

        Raises:
            OSError: the disk does not take it.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._folder / f"{self._kept.name}{_MESSAGE}", message)
        self.update()

    def update(self, **changes: float | str | Outcome | Entry | None) -> None:
        """Change some of what it says, by the names of the fields of `KeptLease`.

        Raises:
            OSError: the disk does not take it; in this process it counts all the same.
        """
        with self._lock:
            self._kept = replace(self._kept, **changes)  # type: ignore[arg-type]  # the names are the fields'
            if self._is_removed:
                return
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._folder / f"{self._kept.name}{_LEASE}", _to_json(self._kept))

    def remove(self) -> None:
        """Remove it at the end of the attempt."""
        with self._lock:
            self._is_removed = True
            forget(self._folder, self._kept.name)


def name_of(lease: Lease) -> str:
    """Return what an attempt's files are called."""
    return f"{lease.experiment_id}-{lease.attempt}-{lease.token}"


def read_leases(folder: Path) -> dict[str, KeptLease]:
    """Return all that the node keeps, by name; what cannot be read is left out."""
    found = (read_lease(folder, path.name.removesuffix(_LEASE)) for path in folder.glob(f"*{_LEASE}"))
    return {kept.name: kept for kept in found if kept is not None}


def read_lease(folder: Path, name: str) -> KeptLease | None:
    """Return one of them, or None when there is none that can be read."""
    try:
        return _from_json((folder / f"{name}{_LEASE}").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("lease_file.unreadable", extra={"file": name, "error": str(error)})
        return None


def read_message(folder: Path, name: str) -> bytes | None:
    """Return the sealed message of an attempt, as it came, or None when it was not kept."""
    with suppress(OSError):
        return (folder / f"{name}{_MESSAGE}").read_bytes()
    return None


def forget(folder: Path, name: str) -> None:
    """Remove an attempt's files; the lease first, so that none is without its message."""
    for ending in (_LEASE, _MESSAGE):
        (folder / f"{name}{ending}").unlink(missing_ok=True)


def forget_strays(folder: Path, *, after: timedelta) -> None:
    """Remove what belongs to no lease that can be read: what was half written, or half removed, so long ago."""
    kept = read_leases(folder)
    for path in folder.glob("*"):
        with suppress(OSError):
            is_old = time.time() - path.stat().st_mtime >= after.total_seconds()
            if is_old and not any(path.name in (f"{name}{_LEASE}", f"{name}{_MESSAGE}") for name in kept):
                path.unlink()
                log.warning("lease_file.removed", extra={"file": path.name})


def read_boot_id() -> str:
    """Return what tells one boot of this machine from another."""
    return _BOOT_ID.read_text().strip()


def _to_json(kept: KeptLease) -> bytes:
    return json.dumps(asdict(kept), default=lambda reason: reason.name).encode()


def _from_json(content: bytes) -> KeptLease:
    """Return what a file says; of a later version of ours only what this one knows, or a guard would freeze it all."""
    said: dict[str, Any] = known_to(KeptLease, json.loads(content))
    if entry := said.get("entry"):
        resources = Resources(**known_to(Resources, entry["resources"]))
        known = known_to(Entry, entry)
        said["entry"] = Entry(**{**known, "resources": resources, "devices": tuple(known["devices"])})
    for name in ("stopping", "ended"):
        if said.get(name):
            of = said[name]
            said[name] = Outcome(**{**of, "reason": Reason[of["reason"]], "last_lines": tuple(of["last_lines"])})
    return KeptLease(**said)


def known_to(value: type[Any], said: dict[str, Any]) -> dict[str, Any]:
    """Return what of a file is a field of this version's value."""
    known = {field.name for field in fields(value)}
    return {name: each for name, each in said.items() if name in known}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; where the disk is full, over the old one, which needs no room."""
    new = path.with_name(path.name + _NEW)
    try:
        new.write_bytes(content)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        if not path.exists():
            raise
        handle = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(handle, content.ljust(os.fstat(handle).st_size), 0)
        finally:
            os.close(handle)
