"""What an attempt's end leads to: the experiment's end, committed, or the lease given back for another attempt."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from jobqueue.errors import ArtifactRefused, RegistryUnavailable
from jobqueue.lifecycle import Budget, Message, Outcome, Reason, State
from jobqueue.registry.base import Record
from workers.attempt.commit import commit, outcome_of, tell_end
from workers.attempt.ending import back_off
from workers.attempt.execute import Executed
from workers.attempt.lease import LeaseKeeper
from workers.attempt.patience import PATIENCE_SECONDS, patiently
from workers.attempt.reporting import Reporter
from workers.attempt.site import Site

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
    """The experiment is not final, or not everywhere; the message comes back after `delay`.

    Attributes:
        outcome: of the attempt that was given back; None when there was none.
        why: what there was instead.
    """

    delay: timedelta
    outcome: Outcome | None = None
    why: str = "another attempt holds the lease"

    @property
    def sentence(self) -> str:
        """Say why."""
        return f"{self.outcome.reason.name}: {self.outcome.sentence}" if self.outcome else self.why


def conclude(
    executed: Executed, record: Record, *, site: Site, keeper: LeaseKeeper, reporter: Reporter
) -> Ended | PutOff:
    """Commit the end, or give the lease back when another attempt follows; `record` is as of the grant."""
    outcome, verdict = executed.outcome, executed.outcome.reason.verdict
    # Before the message goes back: it is to be taken by another node.
    site.health.note(outcome.reason)
    if outcome.reason is Reason.RUNTIME_FAILURE and not executed.has_started:
        site.health.note_no_start(record, outcome.detail)
    if outcome.reason is Reason.SUPERSEDED:
        return PutOff(delay=LOOK_AGAIN)
    delay = _next_delay(executed, record, platform_budget=site.policy.platform_budget)
    if delay is not None:
        return give_back(outcome, site=site, keeper=keeper, reporter=reporter, delay=delay)
    if verdict.state is None:
        outcome = exhausted(record, outcome)
    marker = commit(
        keeper.lease,
        outcome,
        state=outcome.reason.verdict.state or State.FAILED,
        manifest=executed.manifest,
        manifest_sha256=executed.manifest_sha256,
        store=site.store,
        leases=site.registry.leases,
        reporter=reporter,
    )
    return Ended(state=marker.state, outcome=outcome_of(marker))


def give_back(outcome: Outcome, *, site: Site, keeper: LeaseKeeper, reporter: Reporter, delay: timedelta) -> PutOff:
    """End the attempt, not the experiment; a worker that has to go does not wait long for the registry."""
    reporter.ended(outcome.reason, state=None, sentence=outcome.sentence, exit_code=outcome.exit_code)
    patiently(
        RegistryUnavailable,
        lambda: site.registry.leases.release(keeper.lease, outcome, delay=delay),
        seconds=DRAIN_PATIENCE_SECONDS if outcome.reason is Reason.DRAINED else PATIENCE_SECONDS,
    )
    return PutOff(delay=delay, outcome=outcome)


def doubt(
    error: ArtifactRefused, record: Record, *, site: Site, keeper: LeaseKeeper, reporter: Reporter
) -> Ended | PutOff:
    """Put off an experiment that has ended nobody can read how; nothing is run again and nothing is written over.

    It may be readable at a later time. When the platform's budget is spent, the registry alone is told of an end.
    """
    why = f"its result marker cannot be read: {error.message}"
    outcome = Outcome(reason=Reason.STORE_UNAVAILABLE, detail=why)
    if record.platform_failures + 1 < site.policy.platform_budget:
        delay = back_off(record.platform_failures)
        return give_back(outcome, site=site, keeper=keeper, reporter=reporter, delay=delay)
    last = exhausted(record, outcome)
    end = replace(last, detail=f"{last.detail}; {why}")
    tell_end(keeper.lease, end, state=State.FAILED, leases=site.registry.leases, reporter=reporter)
    return Ended(state=State.FAILED, outcome=end)


def exhausted(record: Record, last: Outcome | None = None) -> Outcome:
    """Return the outcome of an experiment whose platform budget is spent; it names each attempt's reason."""
    reasons = [past.reason.name for past in record.history] + ([last.reason.name] if last else [])
    last_lines = last.last_lines if last else ()
    return Outcome(reason=Reason.ATTEMPTS_EXHAUSTED, detail=", ".join(reasons), last_lines=last_lines)


def _next_delay(executed: Executed, record: Record, *, platform_budget: int) -> timedelta | None:
    """Return how long until another attempt, or None when there is none."""
    match executed.outcome.reason.verdict.budget:
        case Budget.FREE:
            return timedelta(0) if executed.outcome.reason is Reason.DRAINED else MISFIT_DELAY
        case Budget.USER if record.user_failures < executed.retries:
            return back_off(record.user_failures)
        case Budget.PLATFORM if record.platform_failures + 1 < platform_budget:
            return back_off(record.platform_failures)
    return None
