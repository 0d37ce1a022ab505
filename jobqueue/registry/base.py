"""What is known of experiments, leases and live logs: the ports.

The registry's clock decides everything about leases; no caller's clock is ever sent. Every write of a holder carries
its token, and is refused with `Superseded` when a newer one was granted, the lease was given back, or it is final.
A lease that has run out stays its holder's until somebody asks for it. Final records are kept for thirty days.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.lifecycle import Outcome, Phase, Reason, State
from jobqueue.registry.calls import Calls
from jobqueue.registry.directory import Directory
from jobqueue.registry.ledger import Ledger
from jobqueue.registry.needs import Needs
from jobqueue.registry.pauses import Pauses
from jobqueue.registry.presence import Workers
from jobqueue.registry.values import (
    Another,
    Answer,
    Cancelled,
    Exhausted,
    Final,
    Granted,
    Held,
    Holder,
    Lease,
    LogPiece,
    PastAttempt,
    Quarantined,
    Record,
    Submission,
)

__all__ = [
    "Another",
    "Answer",
    "Cancelled",
    "Exhausted",
    "Experiments",
    "Final",
    "Granted",
    "Held",
    "Holder",
    "Lease",
    "Leases",
    "LiveLogs",
    "LogPiece",
    "PastAttempt",
    "Quarantined",
    "Record",
    "Registry",
    "Submission",
]


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

        An unknown experiment is recorded from `submission`; a known one is granted to its own message only. A lease
        that ran out is counted as a platform failure (WORKER_LOST) here, before the budget is looked at.
        """
        ...

    def renew(self, lease: Lease, *, ttl: timedelta, holder: Holder | None = None) -> Reason | None:
        """Hold on for `ttl` from now; returns the reason of the tombstone that lies (stop it and commit CANCELLED).

        With `holder`, a lease that the registry has forgotten is given back, unless somebody holds a newer one; while
        that cannot be said yet, a holder in doubt meets `RegistryUnavailable`, and so does every other write.
        """
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


class LiveLogs(Protocol):
    """The newest part of a running experiment's output: bounded, lossy at its old end; the store has it whole."""

    def append(self, lease: Lease, stream: str, data: bytes, *, offset: int) -> None:
        """Add some bytes; `offset` is that of the first one in the attempt's stream."""
        ...

    def read(self, experiment_id: ExperimentId, stream: str, *, after: str = "") -> list[LogPiece]:
        """Return what came after the cursor (from the oldest still there when empty), without waiting."""
        ...


class Registry(Protocol):
    """The nine ports over one connection."""

    leases: Leases
    experiments: Experiments
    live_logs: LiveLogs
    workers: Workers
    ledger: Ledger
    needs: Needs
    directory: Directory
    calls: Calls
    pauses: Pauses

    def ping(self) -> datetime:
        """Return the registry's time, aware, when it answers.

        Raises:
            RegistryUnavailable: it does not.
        """
        ...

    def close(self) -> None:
        """Close its connections."""
        ...
