"""Live logs in Redis: a stream for each, cut to a number of bytes."""

from typing import Final

from jobqueue.ids import ExperimentId
from jobqueue.registry.base import Lease, LogPiece
from jobqueue.registry.redis_client import RedisClient
from jobqueue.registry.redis_leases import checked
from jobqueue.registry.rules import KEPT_LOG_BYTES, LARGEST_PIECE_BYTES, check_cursor

_LOG: Final = "jobqueue:log:"


class RedisLiveLogs:
    """`LiveLogs` over Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def append(self, lease: Lease, stream: str, data: bytes, *, offset: int) -> None:
        """Add some bytes; what is known already, because it was sent before, is left out."""
        reply = self._client.run(
            "append",
            *(lease.experiment_id, lease.token, stream, lease.attempt),
            *(offset, data, LARGEST_PIECE_BYTES, KEPT_LOG_BYTES),
        )
        checked(lease, reply)

    def read(self, experiment_id: ExperimentId, stream: str, *, after: str = "") -> list[LogPiece]:
        """Return what came after the cursor, without waiting."""
        check_cursor(after)
        since = f"({after}-0" if after else "-"
        entries = self._client.ask(("XRANGE", f"{_LOG}{experiment_id}:{stream}", since, "+"))[0]
        return [
            LogPiece(
                cursor=entry_id.decode().partition("-")[0],
                attempt=int(fields[b"attempt"]),
                offset=int(fields[b"offset"]),
                data=fields[b"bytes"],
            )
            for entry_id, fields in entries
        ]
