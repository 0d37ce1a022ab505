"""Which open experiments nobody has seen for long, and who looks after them: a port of the registry."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.registry.values import Submission


class Ledger(Protocol):
    """What is open and may be lost. Raises `RegistryUnavailable` when the registry does not answer.

    An experiment is seen when it is registered, asked for by whoever got its message, renewed, given back (then until
    its back-off is over), and published again.
    """

    def elect(self, role: str, worker_id: WorkerId, *, ttl: timedelta) -> bool:
        """Tell whether this worker has the role for `ttl` from now: one at a time, until it no longer asks."""
        ...

    def lost(self, older_than: timedelta, *, limit: int, queue: str = "") -> list[Submission]:
        """Return what is neither final nor held and was not seen for `older_than`: with messages, longest unseen first.

        Of one request queue, or of all when it is empty. Cancelled ones too, whose holder was lost before it could
        commit that: whoever gets the message does it.
        """
        ...

    def republished(self, experiment_ids: Sequence[ExperimentId]) -> None:
        """Note that they were seen now."""
        ...
