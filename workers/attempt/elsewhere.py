"""Whether what waits here for its share of the machine could begin at once on another node."""

from typing import Final

from jobqueue.errors import JobqueueError
from jobqueue.ids import ExperimentId, NodeId
from jobqueue.registry.presence import TAKING
from jobqueue.resources import Resources, fits_in
from workers.attempt.site import Site

# Said in the end of an attempt that leaves its place here for another node; whose history says so stays the next time:
# that node may have had a reason of its own to refuse it.
LEFT: Final = "another node is free"


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
