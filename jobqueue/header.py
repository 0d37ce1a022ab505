"""The clear part of a message: what scheduling needs to know, and nothing else of the experiment."""

from dataclasses import dataclass
from datetime import datetime

from jobqueue.ids import ExperimentId
from jobqueue.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Header:
    """Bound to the signature and to the sealing, so that it cannot be changed.

    Attributes:
        project: the owner of the queue.
        submitted_at, expires_at: aware; not to be started outside of them.
    """

    experiment_id: ExperimentId
    queue: str
    project: str
    resources: Resources
    submitted_at: datetime
    expires_at: datetime
