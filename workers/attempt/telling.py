"""Who tells what becomes of an attempt: a reporter that numbers on from an earlier worker's, and seals as was asked."""

from collections.abc import Callable
from contextlib import suppress

from jobqueue.envelope import Verified, open_sealed
from jobqueue.errors import JobqueueError, Refused
from jobqueue.ids import ExperimentId
from jobqueue.keys import SealingPublicKey
from jobqueue.lifecycle import Reason
from jobqueue.registry.base import Lease
from workers.attempt.lease_files import LeaseFile
from workers.attempt.reporting import Addressee, Reporter
from workers.attempt.site import Site


def make_reporter(site: Site, message: Verified, *, lease: Lease, file: LeaseFile | None = None) -> Reporter:
    """Return what tells of an attempt; without its file, of what nobody attempts."""
    return Reporter(
        site.outbox,
        to=Addressee(
            queue=message.header.queue,
            reporting_key=_reporting_key(site, message),
            sender_key_id=message.envelope.sender_key_id,
        ),
        experiment_id=lease.experiment_id,
        worker_id=site.worker_id,
        attempt=lease.attempt,
        token=lease.token,
        told=file.kept.reports if file else 0,
        is_repeating=bool(file and file.kept.ended),
        on_number=_counting(file),
    )


def answer(site: Site, refusal: Refused, *, queue: str) -> None:
    """Tell the sender of a message that nothing can be run of it, if its signature has held; else never."""
    experiment_id = ExperimentId(refusal.experiment_id)
    if refusal.sender_key_id or experiment_id:
        to = Addressee(queue=queue, sender_key_id=refusal.sender_key_id)
        nobodys = Reporter(site.outbox, to=to, experiment_id=experiment_id, worker_id=site.worker_id)
        nobodys.refused(Reason.BAD_ENVELOPE, refusal.message)


def _reporting_key(site: Site, message: Verified) -> SealingPublicKey | None:
    """Return what its sender wants reports sealed to; None where it names nothing, or does not open.

    It is in the message, which is kept beside the lease: whoever goes on with the attempt finds it there.
    """
    try:
        return open_sealed(message, keys=site.keys).reporting_key
    except JobqueueError:  # the attempt meets the same, and ends with it
        return None


def _counting(file: LeaseFile | None) -> Callable[[int], None]:
    """Return what keeps the number of reports, so that a worker that takes over goes on counting."""

    def count(reports: int) -> None:
        with suppress(OSError):
            if file and not file.kept.ended:
                file.update(reports=reports)

    return count
