"""Lease files as attempts leave them on a node."""

from pathlib import Path
from typing import Any

from jobqueue.ids import WorkerId, make_experiment_id
from workers.attempt.lease_files import KeptLease, LeaseFile, read_boot_id


def make_kept(**fields: Any) -> KeptLease:
    """Return the lease of a first attempt, as its node knows it."""
    known = {
        "experiment_id": make_experiment_id(),
        "attempt": 1,
        "token": 1,
        "worker_id": WorkerId("cpu@host"),
        "queue": "default_cpu",
        "boot_id": read_boot_id(),
        "deadline_seconds": 0.0,
    }
    return KeptLease(**{**known, **fields})


def keep(folder: Path, *, message: bytes = b"", **fields: Any) -> LeaseFile:
    """Write the lease file of an attempt, with its message beside it."""
    file = LeaseFile(folder, make_kept(**fields))
    file.create(message)
    return file
