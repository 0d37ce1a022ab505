"""What the parts of one worker's delivery share; Celery makes each of them, and gives it only the application."""

from dataclasses import dataclass
from typing import Any, Final

from workers.delivery.ends import Ends
from workers.delivery.refusals import Refusals
from workers.delivery.scout import Scout

_ATTRIBUTE: Final = "jobqueue_shared"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What one worker has of each, over all of its connections.

    Attributes:
        ends: the messages whose experiments have ended in it.
        refusals: what it has refused.
        scout: which queues it may serve.
    """

    ends: Ends
    refusals: Refusals
    scout: Scout


def share(app: Any, shared: Shared) -> None:
    """Make it known to the consumer and the requests of an application."""
    setattr(app, _ATTRIBUTE, shared)


def shared_by(app: Any) -> Shared:
    """Return what is shared in this worker's application."""
    shared: Shared = getattr(app, _ATTRIBUTE)
    return shared
