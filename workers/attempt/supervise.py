"""One attempt, from a verified message to what becomes of it: takes the lease, runs, and concludes.

The order of the end never changes: the container is stopped, its outputs lie under the attempt's own prefix, the
result marker is written, the final report is given to the outbox, the registry is told, the message goes. Each step
may be interrupted and repeated by the next attempt.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from jobqueue.envelope import Verified
from jobqueue.errors import ArtifactRefused, RegistryUnavailable, StoreUnavailable, Superseded
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry import base as registry
from jobqueue.registry.base import Holder, Lease, Record, Submission
from jobqueue.resources import Resources
from jobqueue.storage import scope
from jobqueue.storage.markers import read_marker
from workers.attempt.commit import find_end, follow_marker, outcome_of
from workers.attempt.conclude import LOOK_AGAIN, Ended, PutOff, conclude, doubt, exhausted, give_back
from workers.attempt.ending import back_off, outcome_of_error
from workers.attempt.execute import Executed, Execution
from workers.attempt.lease import LeaseKeeper, clock_seconds, local_deadline
from workers.attempt.lease_files import KeptLease, LeaseFile, read_boot_id
from workers.attempt.leftovers import tidy
from workers.attempt.reporting import Reporter
from workers.attempt.runtimes.base import Container
from workers.attempt.site import Site
from workers.attempt.telling import make_reporter
from workers.attempt.turn import count_left

__all__ = ["Attempt", "Ended", "Left", "PutOff", "holder_of", "submission_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a lost worker of this name has left of a running attempt.

    Attributes:
        kept: its lease as it stands in its file; the registry has accepted a renewal of it.
        container: None when it is gone already, its end being kept.
        renewed_at_seconds: `clock_seconds()` before that renewal was sent.
        cancel_reason: what the registry has answered to it.
    """

    kept: KeptLease
    container: Container | None
    record: Record
    renewed_at_seconds: float
    cancel_reason: Reason | None = None


class Attempt:
    """Runs one delivery of one experiment, on the calling thread.

    Args:
        site: the node's ports and limits.
        message: the verified envelope.
    """

    def __init__(self, site: Site, message: Verified) -> None:
        header = message.header
        store = scope(site.store, queue=header.queue, experiment_id=header.experiment_id, envelope=message.message)
        self._site = replace(site, store=store)
        self._message = message
        self._asked: Reason | None = None
        self._execution: Execution | None = None

    @property
    def queue(self) -> str:
        """The request queue that its message came from."""
        return self._message.header.queue

    @property
    def resources(self) -> Resources:
        """What it asks for."""
        return self._message.header.resources

    @property
    def has_begun(self) -> bool:
        """Whether it got its lease, and has run or runs its experiment."""
        return self._execution is not None

    @property
    def has_started(self) -> bool:
        """Whether its container was started."""
        return self._execution is not None and self._execution.has_started

    def ask(self, reason: Reason) -> None:
        """Ask for the end: DRAINED, CANCELLED_BY_USER or QUEUE_DELETED. Any thread; returns at once."""
        self._asked = self._asked or reason
        if self._execution:
            self._execution.ask(reason)

    def run(self) -> Ended | PutOff:
        """Take the lease if it is to be had, and do what it is for.

        Raises:
            RegistryUnavailable: nothing is known, nothing was done.
        """
        site = self._site
        asked_at_seconds = clock_seconds()
        answer = site.registry.leases.acquire(
            submission_of(self._message),
            worker_id=site.worker_id,
            node_id=site.node_id,
            ttl=site.lease,
            platform_budget=site.policy.platform_budget,
        )
        match answer:
            case registry.Final(record=record):
                return self._over(record)
            case registry.Held(remaining=remaining):
                return PutOff(delay=remaining)
            case registry.Quarantined(remaining=remaining):
                return PutOff(delay=remaining, why="the registry may have forgotten who holds the lease")
            case registry.Another():
                # A report about this id would be taken for one about the experiment that has it.
                refused = Outcome(reason=Reason.BAD_ENVELOPE, detail="another message has its id")
                return Ended(state=State.FAILED, outcome=refused)
        file = LeaseFile(site.leases, self._keep(answer.lease, asked_at_seconds))
        keeper = LeaseKeeper(
            site.registry.leases,
            file,
            ttl=site.lease,
            granted_at_seconds=asked_at_seconds,
            holder=holder_of(self._message, site),
        )
        return self._under(
            keeper,
            answer.record,
            lambda reporter: self._follow(answer.record, keeper, reporter) or self._proceed(answer, keeper, reporter),
        )

    def resume(self, left: Left) -> Ended | PutOff:
        """Go on with an attempt whose worker was lost, under its lease: no attempt is used up."""
        log.warning("attempt.adopted", extra={"experiment": left.kept.experiment_id, "attempt": left.kept.attempt})
        file = LeaseFile(self._site.leases, left.kept)
        # At once: until then the guard takes it for overdue.
        with suppress(OSError):
            file.update(deadline_seconds=local_deadline(left.renewed_at_seconds, self._site.lease))
        count_left(self._site, file, self._message)
        keeper = LeaseKeeper(
            self._site.registry.leases,
            file,
            ttl=self._site.lease,
            granted_at_seconds=left.renewed_at_seconds,
            holder=holder_of(self._message, self._site),
            is_taken_over=True,
            cancel_reason=left.cancel_reason,
        )
        return self._under(keeper, left.record, lambda reporter: self._go_on(left, keeper, reporter))

    def _keep(self, lease: Lease, asked_at_seconds: float) -> KeptLease:
        return KeptLease(
            experiment_id=lease.experiment_id,
            attempt=lease.attempt,
            token=lease.token,
            worker_id=self._site.worker_id,
            queue=self.queue,
            boot_id=read_boot_id(),
            deadline_seconds=local_deadline(asked_at_seconds, self._site.lease),
        )

    def _under(self, keeper: LeaseKeeper, record: Record, step: Callable[[Reporter], Ended | PutOff]) -> Ended | PutOff:
        """Do a step while the lease is renewed; what the node keeps of it goes with it."""
        reporter = make_reporter(self._site, self._message, lease=keeper.lease, file=keeper.file)
        keeper.start()
        try:
            return self._hold(keeper, reporter, record, step)
        except (RegistryUnavailable, Superseded) as error:
            log.warning("attempt.put_off", extra={"experiment": keeper.lease.experiment_id, "error": error.message})
            return PutOff(delay=LOOK_AGAIN, why=error.message)
        finally:
            keeper.close()
            tidy(keeper.file, site=self._site)

    def _over(self, record: Record) -> Ended | PutOff:
        """Return the end that the registry knows, and report it: whoever was to do that may have died before.

        It is told as of no attempt, and numbered alike each time, so that listeners drop all but the first.
        """
        try:
            marker = find_end(record, self._site.store)
        except StoreUnavailable as error:
            return PutOff(delay=LOOK_AGAIN, why=f"it is over, which the store does not know yet: {error.message}")
        outcome = Outcome(reason=record.reason or Reason.SUPERSEDED, detail=record.detail)
        nobodys = Lease(experiment_id=record.submission.id, token=0, attempt=0)
        make_reporter(self._site, self._message, lease=nobodys).ended(
            outcome.reason,
            state=record.state,
            sentence=outcome.sentence,
            exit_code=record.exit_code,
            manifest=marker.manifest if marker else "",
        )
        return Ended(state=record.state, outcome=outcome)

    def _hold(
        self, keeper: LeaseKeeper, reporter: Reporter, record: Record, step: Callable[[Reporter], Ended | PutOff]
    ) -> Ended | PutOff:
        try:
            return step(reporter)
        except StoreUnavailable as error:
            # The end cannot be looked up or written now; a lease that is given back is not taken for a lost worker's.
            outcome = Outcome(reason=Reason.STORE_UNAVAILABLE, detail=error.message)
            delay = back_off(record.platform_failures)
            return give_back(outcome, site=self._site, keeper=keeper, reporter=reporter, delay=delay)
        except ArtifactRefused as error:
            return doubt(error, record, site=self._site, keeper=keeper, reporter=reporter)

    def _follow(self, record: Record, keeper: LeaseKeeper, reporter: Reporter) -> Ended | None:
        """Return the end that an earlier attempt has written, told to everybody, or None when there is none."""
        may_have_ended = record.attempt > 1 or not record.is_whole
        marker = read_marker(self._site.store, keeper.lease.experiment_id) if may_have_ended else None
        if marker is None:
            return None
        follow_marker(keeper.lease, marker, leases=self._site.registry.leases, reporter=reporter)
        return Ended(state=marker.state, outcome=outcome_of(marker))

    def _proceed(
        self,
        answer: registry.Granted | registry.Cancelled | registry.Exhausted,
        keeper: LeaseKeeper,
        reporter: Reporter,
    ) -> Ended | PutOff:
        match answer:
            case registry.Cancelled():
                executed = Executed(outcome=Outcome(reason=answer.record.cancel_reason or Reason.CANCELLED_BY_USER))
            case registry.Exhausted():
                executed = Executed(outcome=exhausted(answer.record))
            case registry.Granted():
                executed = self._execute(keeper, reporter, answer.record)
        return conclude(executed, answer.record, site=self._site, keeper=keeper, reporter=reporter)

    def _go_on(self, left: Left, keeper: LeaseKeeper, reporter: Reporter) -> Ended | PutOff:
        executed = self._run(keeper, reporter, left.record, left=left.container)
        return conclude(executed, left.record, site=self._site, keeper=keeper, reporter=reporter)

    def _execute(self, keeper: LeaseKeeper, reporter: Reporter, record: Record) -> Executed:
        log.info("attempt.leased", extra={"experiment": keeper.lease.experiment_id, "attempt": keeper.lease.attempt})
        if record.history and record.history[-1].reason is Reason.WORKER_LOST:
            reporter.logged(f"attempt {record.history[-1].attempt} was lost with its worker")
        try:
            keeper.file.create(self._message.message)
        except OSError as error:
            return Executed(outcome=outcome_of_error(error))
        return self._run(keeper, reporter, record)

    def _run(self, keeper: LeaseKeeper, reporter: Reporter, record: Record, left: Container | None = None) -> Executed:
        self._execution = Execution(
            self._site, self._message, record=record, keeper=keeper, reporter=reporter, left=left
        )
        if self._asked:
            self._execution.ask(self._asked)
        return self._execution.run()


def submission_of(message: Verified) -> Submission:
    """Return what a message tells the registry of its experiment, should that not know it."""
    header = message.header
    return Submission(
        id=header.experiment_id,
        queue=header.queue,
        project=header.project,
        resources=header.resources,
        submitted_at=header.submitted_at,
        expires_at=header.expires_at,
        digest=message.digest,
    )


def holder_of(message: Verified, site: Site) -> Holder:
    """Return what gets this worker the lease of a message's experiment back, should the registry have forgotten it."""
    return Holder(submission=submission_of(message), worker_id=site.worker_id, node_id=site.node_id)
