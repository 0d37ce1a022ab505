"""One attempt, from a verified message to what becomes of it: takes the lease, runs, and concludes.

The order of the end never changes: the container is stopped, its outputs lie under the attempt's own prefix, the
result marker is written, the final report is given to the outbox, the registry is told, the message goes. Each step
may be interrupted and repeated by the next attempt.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from jobqueue.envelope import Verified
from jobqueue.errors import ArtifactRefused, RegistryUnavailable, StoreUnavailable, Superseded
from jobqueue.lifecycle import Budget, Message, Outcome, Reason, State
from jobqueue.registry import base as registry
from jobqueue.registry.base import Lease, Record, Submission
from jobqueue.storage.markers import read_marker
from workers.attempt.commit import commit, follow_marker, outcome_of
from workers.attempt.ending import back_off
from workers.attempt.execute import Executed, Execution
from workers.attempt.lease import LeaseKeeper, clock_seconds
from workers.attempt.patience import PATIENCE_SECONDS, patiently
from workers.attempt.reporting import Reporter
from workers.attempt.site import Site

log = logging.getLogger(__name__)

LOOK_AGAIN: Final = timedelta(seconds=5)
MISFIT_DELAY: Final = timedelta(seconds=15)
DRAIN_PATIENCE_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The experiment is final; the message may go, or is set aside when `is_dead_letter`."""

    state: State
    outcome: Outcome

    @property
    def is_dead_letter(self) -> bool:
        """Tell whether the message is kept aside for an operator."""
        return self.outcome.reason.verdict.message is Message.DEAD_LETTER


@dataclass(frozen=True, kw_only=True)
class PutOff:
    """The experiment is not final; the message comes back after `delay`."""

    delay: timedelta
    outcome: Outcome | None = None


class Attempt:
    """Runs one delivery of one experiment, on the calling thread.

    Args:
        site: the node's ports and limits.
        message: the verified envelope.
    """

    def __init__(self, site: Site, message: Verified) -> None:
        self._site = site
        self._message = message
        self._asked: Reason | None = None
        self._execution: Execution | None = None

    @property
    def queue(self) -> str:
        """The request queue that its message came from."""
        return self._message.header.queue

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
            _submission(self._message),
            worker_id=site.worker_id,
            node_id=site.node_id,
            ttl=site.lease,
            platform_budget=site.policy.platform_budget,
        )
        match answer:
            case registry.Final(record=record):
                return self._over(record)
            case registry.Held(remaining=remaining) | registry.Quarantined(remaining=remaining):
                return PutOff(delay=remaining)
        keeper = LeaseKeeper(site.registry.leases, answer.lease, ttl=site.lease, granted_at_seconds=asked_at_seconds)
        keeper.start()
        try:
            return self._hold(answer, keeper)
        except (RegistryUnavailable, Superseded) as error:
            log.warning("attempt.put_off", extra={"experiment": keeper.lease.experiment_id, "error": error.message})
            return PutOff(delay=LOOK_AGAIN)
        finally:
            keeper.close()

    def _over(self, record: Record) -> Ended:
        """Return the end that the registry knows, and report it: whoever was to do that may have died before.

        It is told as of no attempt, and numbered alike each time, so that listeners drop all but the first.
        """
        outcome = Outcome(reason=record.reason or Reason.SUPERSEDED, detail=record.detail)
        self._reporter(Lease(experiment_id=record.submission.id, token=0, attempt=0)).ended(
            outcome.reason,
            state=record.state,
            sentence=outcome.sentence,
            exit_code=record.exit_code,
            manifest=self._find_manifest(record),
        )
        return Ended(state=record.state, outcome=outcome)

    def _find_manifest(self, record: Record) -> str:
        """Return where the outputs of a final experiment are listed; empty when there are none, or nobody can say."""
        if not record.token:
            return ""
        try:
            marker = read_marker(self._site.store, record.submission.id)
        except (StoreUnavailable, ArtifactRefused) as error:
            log.warning("marker.not_read", extra={"experiment": record.submission.id, "error": error.message})
            return ""
        return marker.manifest if marker else ""

    def _hold(
        self, answer: registry.Granted | registry.Cancelled | registry.Exhausted, keeper: LeaseKeeper
    ) -> Ended | PutOff:
        record, reporter = answer.record, self._reporter(keeper.lease)
        try:
            return self._follow(answer.record, keeper, reporter) or self._proceed(answer, keeper, reporter)
        except StoreUnavailable as error:
            # The end cannot be looked up or written now; a lease that is given back is not taken for a lost worker's.
            outcome = Outcome(reason=Reason.STORE_UNAVAILABLE, detail=error.message)
            return self._give_back(outcome, keeper, reporter, delay=back_off(record.platform_failures))

    def _follow(self, record: Record, keeper: LeaseKeeper, reporter: Reporter) -> Ended | None:
        """Return the end that an earlier attempt has written, told to everybody, or None when there is none."""
        may_have_ended = record.attempt > 1 or not record.submission.spec_digest
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
                executed = Executed(outcome=_exhausted(answer.record))
            case registry.Granted():
                executed = self._execute(keeper, reporter, answer.record)
        return self._conclude(executed, answer.record, keeper=keeper, reporter=reporter)

    def _execute(self, keeper: LeaseKeeper, reporter: Reporter, record: Record) -> Executed:
        log.info("attempt.leased", extra={"experiment": keeper.lease.experiment_id, "attempt": keeper.lease.attempt})
        if record.history and record.history[-1].reason is Reason.WORKER_LOST:
            reporter.logged(f"attempt {record.history[-1].attempt} was lost with its worker")
        self._execution = Execution(self._site, self._message, record=record, keeper=keeper, reporter=reporter)
        if self._asked:
            self._execution.ask(self._asked)
        return self._execution.run()

    def _conclude(
        self, executed: Executed, record: Record, *, keeper: LeaseKeeper, reporter: Reporter
    ) -> Ended | PutOff:
        outcome, verdict = executed.outcome, executed.outcome.reason.verdict
        if outcome.reason is Reason.SUPERSEDED:
            return PutOff(delay=LOOK_AGAIN)
        delay = self._next_delay(executed, record)
        if delay is not None:
            return self._give_back(outcome, keeper, reporter, delay=delay)
        if verdict.state is None:
            outcome = _exhausted(record, outcome)
        marker = commit(
            keeper.lease,
            outcome,
            state=outcome.reason.verdict.state or State.FAILED,
            manifest=executed.manifest,
            store=self._site.store,
            leases=self._site.registry.leases,
            reporter=reporter,
        )
        return Ended(state=marker.state, outcome=outcome_of(marker))

    def _give_back(self, outcome: Outcome, keeper: LeaseKeeper, reporter: Reporter, *, delay: timedelta) -> PutOff:
        """End the attempt, not the experiment; a worker that has to go does not wait long for the registry."""
        reporter.ended(outcome.reason, state=None, sentence=outcome.sentence, exit_code=outcome.exit_code)
        patiently(
            RegistryUnavailable,
            lambda: self._site.registry.leases.release(keeper.lease, outcome, delay=delay),
            seconds=DRAIN_PATIENCE_SECONDS if outcome.reason is Reason.DRAINED else PATIENCE_SECONDS,
        )
        return PutOff(delay=delay, outcome=outcome)

    def _next_delay(self, executed: Executed, record: Record) -> timedelta | None:
        """Return how long until another attempt, or None when there is none."""
        match executed.outcome.reason.verdict.budget:
            case Budget.FREE:
                return timedelta(0) if executed.outcome.reason is Reason.DRAINED else MISFIT_DELAY
            case Budget.USER if record.user_failures < executed.retries:
                return back_off(record.user_failures)
            case Budget.PLATFORM if record.platform_failures + 1 < self._site.policy.platform_budget:
                return back_off(record.platform_failures)
        return None

    def _reporter(self, lease: Lease) -> Reporter:
        return Reporter(
            self._site.outbox,
            queue=self._message.header.queue,
            experiment_id=lease.experiment_id,
            worker_id=self._site.worker_id,
            attempt=lease.attempt,
            token=lease.token,
        )


def _submission(message: Verified) -> Submission:
    header = message.header
    return Submission(
        id=header.experiment_id,
        queue=header.queue,
        project=header.project,
        resources=header.resources,
        submitted_at=header.submitted_at,
        expires_at=header.expires_at,
    )


def _exhausted(record: Record, last: Outcome | None = None) -> Outcome:
    """Return the outcome of an experiment whose platform budget is spent; it names each attempt's reason."""
    reasons = [past.reason.name for past in record.history] + ([last.reason.name] if last else [])
    last_lines = last.last_lines if last else ()
    return Outcome(reason=Reason.ATTEMPTS_EXHAUSTED, detail=", ".join(reasons), last_lines=last_lines)
