"""What earlier attempts of an experiment, lost workers' or this one's own, have left on its node."""

import logging
from contextlib import suppress

from jobqueue.registry.base import Lease
from workers.attempt import workspace
from workers.attempt.lease_files import LeaseFile, read_leases
from workers.attempt.site import Site

log = logging.getLogger(__name__)


def remove_earlier(lease: Lease, *, site: Site, may_run: bool) -> None:
    """Leave nothing of those before a lease here: what they had of the machine is free for others then.

    Args:
        lease: of the attempt that is about to start.
        site: the node's ports and folders.
        may_run: whether a container of theirs may be here that has no lease file.
    """
    kept = [each for each in read_leases(site.leases).values() if each.experiment_id == lease.experiment_id]
    earlier = [each for each in kept if each.token < lease.token]
    for container in site.runtime.find(site.node_id) if may_run or earlier else ():
        if container.labels.experiment_id == lease.experiment_id:
            log.warning("container.orphan", extra={"experiment": lease.experiment_id})
            container.remove()
    for each in earlier:
        tidy(LeaseFile(site.leases, each), site=site)


def tidy(file: LeaseFile, *, site: Site) -> None:
    """Remove an attempt's folder, and then what the node keeps of it.

    What cannot be removed is not forgotten, but tried again by the janitor; it needs nothing else of the machine.
    """
    if workspace.remove(workspace.attempt_folder(site.folder, file.kept.lease)):
        file.remove()
        return
    with suppress(OSError):
        file.update(entry=None)
