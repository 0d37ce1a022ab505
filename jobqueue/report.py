"""What a worker tells: one numbered statement about an attempt, as plain values.

The codec turns a report into the protobuf message that StudioML's listeners read as well; nothing here knows the wire.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from jobqueue.ids import ExperimentId, KeyId, WorkerId
from jobqueue.lifecycle import Fault, Reason, State


class TaskState(IntEnum):
    """StudioML's states of a task, letter by letter."""

    PRESTART = 0
    STARTED = 1
    STOPPING = 2
    FAILED = 20
    SUCCESS = 21


class Severity(IntEnum):
    """StudioML's severities of a log entry."""

    DEFAULT = 0
    TRACE = 100
    DEBUG = 200
    INFO = 300
    WARNING = 400
    ERROR = 500
    FATAL = 600


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """A line for whoever keeps books."""

    message: str
    severity: Severity = Severity.INFO
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an attempt is.

    Attributes:
        task_state: StudioML's word for it.
        json: what the experiment printed, as a JSON object; empty when it is only a change of state.
        error: why it failed, in one sentence.
        error_code: the container's exit code, when it failed with one.
    """

    task_state: TaskState
    json: str = ""
    error: str = ""
    error_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """One statement about one attempt.

    Attributes:
        at: aware time of the statement on the node.
        worker_id: who says it.
        sequence: from 0, without a gap, for each attempt.
        attempt, token: which attempt; 0 where a message was refused before there was one.
        state, reason, fault: filled when the statement is about a change of state.
        manifest: the store key of the outputs' manifest, on a final report.
        queue: the request queue that the experiment came through; empty where nobody said.
        signed_by: the node's key whose signature over all of this has held; None: nobody's, it is not verified.
    """

    at: datetime
    experiment_id: ExperimentId
    worker_id: WorkerId
    sequence: int
    attempt: int
    token: int
    payload: Progress | LogEntry | str
    state: State | None = None
    reason: Reason | None = None
    fault: Fault | None = None
    exit_code: int | None = None
    manifest: str = ""
    queue: str = ""
    signed_by: KeyId | None = None

    @property
    def attempt_id(self) -> str:
        """What StudioML calls the unique id: one for each attempt."""
        return f"{self.experiment_id}-{self.attempt}-{self.token}"
