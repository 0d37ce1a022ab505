"""Whether what waits here for its share of the machine could begin at once on another node."""

import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from jobqueue.errors import JobqueueError
from jobqueue.ids import ExperimentId, NodeId
from jobqueue.registry.presence import TAKING
from jobqueue.resources import Resources, fits_in
from workers.attempt.site import Site

# Said in the end of an attempt that leaves its place here for another node; whose history says so stays the next time:
# that node may have had a reason of its own to refuse it.
LEFT: Final = "another node is free"
# For so long nobody lets it wait on the machine that it has left: the free one is to find its message.
AWAY: Final = timedelta(minutes=2)


def find_idle(site: Site, *, queue: str, resources: Resources) -> frozenset[NodeId]:
    """Return the other nodes that run nothing, take from a queue and have room; none where that cannot be said."""
    try:
        there = () if queue in site.registry.pauses.paused() else site.registry.workers.present()
    except JobqueueError:
        return frozenset()
    busy = {site.node_id} | {worker.node_id for worker in there if worker.experiment_ids or worker.state != TAKING}
    return frozenset(
        worker.node_id
        for worker in there
        if worker.node_id not in busy and queue in worker.queues and not fits_in(resources, worker.offer)
    )


def has_left(site: Site, experiment_id: ExperimentId) -> bool:
    """Tell whether an experiment has left its place on a node before, for another one; True where nobody can say."""
    try:
        history = site.registry.experiments.get(experiment_id).history
    except JobqueueError:
        return True
    return any(LEFT in past.detail for past in history)


def note_leaving(site: Site, experiment_id: ExperimentId) -> None:
    """Let all workers of this machine know that an experiment leaves it."""
    with suppress(OSError):  # it may come back to wait here, and that is all
        folder = _folder(site)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not _is_new(path):
                path.unlink(missing_ok=True)
        (folder / experiment_id).touch(mode=0o600)


def is_away(site: Site, experiment_id: ExperimentId) -> bool:
    """Tell whether an experiment has just left this machine."""
    return _is_new(_folder(site) / experiment_id)


def _folder(site: Site) -> Path:
    return site.leases.with_name("left")


def _is_new(path: Path) -> bool:
    try:
        age_seconds = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return 0 <= age_seconds < AWAY.total_seconds()
