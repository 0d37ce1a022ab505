"""The ledger in Redis: open experiments in the order in which they were seen last."""

from collections.abc import Sequence
from datetime import timedelta

from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.registry.redis_client import RedisClient, as_bytes
from jobqueue.registry.redis_fields import milliseconds, parse_submission
from jobqueue.registry.values import Submission


class RedisLedger:
    """`Ledger` over Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def elect(self, role: str, worker_id: WorkerId, *, ttl: timedelta) -> bool:
        """Tell whether this worker has the role for `ttl` from now."""
        return bool(self._client.run("elect", role, worker_id, milliseconds(ttl)))

    def lost(self, older_than: timedelta, *, limit: int, queue: str = "") -> list[Submission]:
        """Return what is neither final nor held and was not seen for `older_than`."""
        found = self._client.run("lost", milliseconds(older_than), limit, as_bytes(queue))
        return [parse_submission(text.decode(), message=message) for text, message in found]

    def republished(self, experiment_ids: Sequence[ExperimentId]) -> None:
        """Note that they were seen now."""
        if experiment_ids:
            self._client.run("republished", *experiment_ids)
