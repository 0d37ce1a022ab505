"""What is known of experiments, leases and live logs: the ports, and the values that pass through them.

The registry's clock decides everything about leases; no caller's clock is ever sent. Every write of a holder carries
its token, and is refused with `Superseded` when a newer one was granted, the lease was given back, or it is final.
A lease that has run out stays its holder's until somebody asks for it. Final records are kept for thirty days.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.lifecycle import Outcome, Phase, Reason, State
from jobqueue.registry.presence import Workers
from jobqueue.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What the producer knows when it submits; a worker rebuilds it from the clear header when the registry was wiped.

    Attributes:
        spec_digest: sha256 over the spec; tells two submissions under one idempotency key apart.
        message: the sealed envelope, kept to be published again until it is final; only `get` answers with it.
    """

    id: ExperimentId
    queue: str
    project: str
    resources: Resources
    submitted_at: datetime
    expires_at: datetime
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    idempotency_key: str = ""
    spec_digest: str = ""
    message: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True)
class PastAttempt:
    """How an earlier attempt ended."""

    attempt: int
    token: int
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """All that the registry knows of one experiment.

    Attributes:
        attempt, token: of the newest lease; 0 before the first.
        worker_id, node_id: of its holder; empty while nobody holds it.
        phase: what PREPARING is busy with.
        reason, detail, exit_code, last_lines: of the end once final; else of the last attempt that was given back.
        progress: the last progress, a JSON object as text.
        started_at: when a container was first running; finished_at: when it became final.
        cancel_reason: a tombstone lies, for this reason; the holder will see it at its next renewal.
        user_failures, platform_failures: attempts spent from each budget.
    """

    submission: Submission
    state: State = State.QUEUED
    attempt: int = 0
    token: int = 0
    worker_id: WorkerId | None = None
    node_id: NodeId | None = None
    phase: Phase | None = None
    reason: Reason | None = None
    detail: str = ""
    exit_code: int | None = None
    last_lines: tuple[str, ...] = ()
    progress: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_reason: Reason | None = None
    user_failures: int = 0
    platform_failures: int = 0
    history: tuple[PastAttempt, ...] = ()

    @property
    def is_cancelled(self) -> bool:
        """Tell whether a tombstone lies."""
        return self.cancel_reason is not None


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to run one experiment, or to commit its end, until it expires."""

    experiment_id: ExperimentId
    token: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Granted:
    """Run it. `record` is the experiment as of now; its `history` ends with WORKER_LOST if the last holder vanished."""

    lease: Lease
    record: Record


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """Do not run it: a tombstone lies. The lease is only for committing CANCELLED."""

    lease: Lease
    record: Record


@dataclass(frozen=True, kw_only=True)
class Exhausted:
    """Do not run it: its platform budget is spent. The lease is only for committing ATTEMPTS_EXHAUSTED."""

    lease: Lease
    record: Record


@dataclass(frozen=True, kw_only=True)
class Held:
    """Somebody holds the lease, or the back-off of the last attempt is not over; look again after `remaining`."""

    remaining: timedelta


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """The registry has forgotten or its clock has jumped: nothing is granted before `remaining` is over."""

    remaining: timedelta


@dataclass(frozen=True, kw_only=True)
class Final:
    """It is over; the message may go."""

    record: Record


Answer = Granted | Cancelled | Exhausted | Held | Quarantined | Final


class Leases(Protocol):
    """Who may run an experiment now. Every method is one atomic step on the registry's clock.

    Every method raises `RegistryUnavailable` when the registry does not answer, all but `acquire` raise `Superseded`
    (repeating a `release` or the winning `finish` is fine), and ValueError is for mistakes: a move that is not in
    `MOVES`, a `release` for a reason that no attempt follows, a `finish` in a state that is not final.
    """

    def acquire(
        self,
        submission: Submission,
        *,
        worker_id: WorkerId,
        node_id: NodeId,
        ttl: timedelta,
        platform_budget: int,
    ) -> Answer:
        """Ask for the lease. token = max(previous + 1, registry time in ms); attempts count from 1.

        An unknown experiment is recorded from `submission`. A lease that ran out is counted as a platform failure
        (WORKER_LOST) here, before the budget is looked at.
        """
        ...

    def renew(self, lease: Lease, *, ttl: timedelta) -> Reason | None:
        """Hold on for `ttl` from now; returns the reason of the tombstone that lies (stop it and commit CANCELLED)."""
        ...

    def advance(self, lease: Lease, state: State, *, phase: Phase | None = None, progress: str | None = None) -> None:
        """Record where it is: PREPARING by the grant, RUNNING, FINALIZING; the same again sets only phase, progress."""
        ...

    def release(self, lease: Lease, outcome: Outcome, *, delay: timedelta) -> None:
        """End the attempt, QUEUED again and not granted before `delay`; counts by the reason's budget."""
        ...

    def finish(self, lease: Lease, outcome: Outcome, *, state: State) -> None:
        """Record the final state, wherever it was (the marker in the store has been written before). Ends the lease."""
        ...


class Experiments(Protocol):
    """What was submitted and where it is. Raises `RegistryUnavailable` when the registry does not answer."""

    def register(self, *submissions: Submission) -> list[ExperimentId]:
        """Record them as QUEUED, in one step, and return their ids, in the same order.

        With an idempotency key seen before (in this project) it is the older id.

        Raises:
            IdempotencyMismatch: a key, or an id itself, was used for another `spec_digest`; none was recorded.
        """
        ...

    def withdraw(self, experiment_id: ExperimentId) -> None:
        """Forget what could not be published (cancel it if a worker has it); its stray message meets a tombstone."""
        ...

    def get(self, experiment_id: ExperimentId) -> Record:
        """Return the record.

        Raises:
            NotFound: no such experiment.
        """
        ...

    def states(self, experiment_ids: Sequence[ExperimentId]) -> dict[ExperimentId, State]:
        """Return where each known one is, in one round trip."""
        ...

    def find(
        self, *, prefix: str = "", name: str = "", project: str = "", queue: str = "", limit: int = 100
    ) -> list[Record]:
        """Return matching records, newest first; empty criteria match everything.

        `prefix` is of the id; `queue` is a request queue, of which only what is not final is returned.
        """
        ...

    def cancel(self, experiment_id: ExperimentId, *, reason: Reason = Reason.CANCELLED_BY_USER) -> State:
        """Put a tombstone, unless one lies. Without a live lease the experiment is CANCELLED at once.

        The reason is CANCELLED_BY_USER or QUEUE_DELETED.

        Returns:
            The state after the call; a final state never changes.

        Raises:
            NotFound: no such experiment.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LogPiece:
    """Some bytes of one stream of one attempt.

    Attributes:
        cursor: where to go on after it.
        offset: of its first byte in the attempt's stream, as stored; a gap means that live pieces were dropped.
    """

    cursor: str
    attempt: int
    offset: int
    data: bytes


class LiveLogs(Protocol):
    """The newest part of a running experiment's output: bounded, lossy at its old end; the store has it whole."""

    def append(self, lease: Lease, stream: str, data: bytes, *, offset: int) -> None:
        """Add some bytes; `offset` is that of the first one in the attempt's stream."""
        ...

    def read(self, experiment_id: ExperimentId, stream: str, *, after: str = "") -> list[LogPiece]:
        """Return what came after the cursor (from the oldest still there when empty), without waiting."""
        ...


class Registry(Protocol):
    """The four ports over one connection."""

    leases: Leases
    experiments: Experiments
    live_logs: LiveLogs
    workers: Workers

    def ping(self) -> datetime:
        """Return the registry's time, aware, when it answers.

        Raises:
            RegistryUnavailable: it does not.
        """
        ...

    def close(self) -> None:
        """Close its connections."""
        ...
