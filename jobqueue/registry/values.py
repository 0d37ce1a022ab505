"""The values that pass through the registry: what is known of an experiment, and the answers about its lease."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.lifecycle import Phase, Reason, State
from jobqueue.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What the producer knows when it submits; a worker rebuilds it from the clear header when the registry was wiped.

    Attributes:
        is_fast: it goes ahead of the others of its queue.
        spec_digest: sha256 over the spec; tells two submissions under one idempotency key apart.
        message: the sealed envelope, kept to be published again until it is final; only `get` answers with it.
        digest: sha256 over that in hex; as what a worker has before it, given without it. No answer has it.
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
    is_fast: bool = False
    spec_digest: str = ""
    message: bytes = field(default=b"", repr=False)
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.message:
            object.__setattr__(self, "digest", hashlib.sha256(self.message).hexdigest())


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
        next_try_at: of one that was given back: not granted before; None while somebody holds it, and once it is final.
        cancel_reason: a tombstone lies, for this reason; the holder will see it at its next renewal.
        is_whole: the registry has known it from its submission to the last grant; else there may be an end, in the
            store, that it has forgotten.
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
    next_try_at: datetime | None = None
    cancel_reason: Reason | None = None
    is_whole: bool = True
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
class Holder:
    """What a holder tells with a renewal, so that it gets its lease back when the registry has forgotten it.

    Attributes:
        submission: as in `acquire`.
        is_in_doubt: its own deadline has passed, so somebody else may hold a newer token.
    """

    submission: Submission
    worker_id: WorkerId
    node_id: NodeId
    is_in_doubt: bool = False


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
    """The registry may have forgotten who holds it: nobody is granted it before `remaining` is over."""

    remaining: timedelta


@dataclass(frozen=True, kw_only=True)
class Final:
    """It is over; the message may go."""

    record: Record


@dataclass(frozen=True, kw_only=True)
class Another:
    """Another message is that of the experiment: the one that was registered, or accepted first."""


Answer = Granted | Cancelled | Exhausted | Held | Quarantined | Final | Another


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
