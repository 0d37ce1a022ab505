"""Live logs in memory."""

from datetime import timedelta

from jobqueue.ids import ExperimentId
from jobqueue.registry.base import Lease, LogPiece
from jobqueue.registry.memory_table import EPOCH, Table
from jobqueue.registry.rules import KEPT_LOG_BYTES, LARGEST_PIECE_BYTES, check_cursor


class MemoryLiveLogs:
    """`LiveLogs` in memory."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._logs: dict[tuple[ExperimentId, str], list[LogPiece]] = table.mapping()

    def append(self, lease: Lease, stream: str, data: bytes, *, offset: int) -> None:
        """Add some bytes; what is known already, because it was sent before, is left out."""
        with self._table.lock:
            self._table.held(lease)
            pieces = self._logs.setdefault((lease.experiment_id, stream), [])
            # From the clock, so that a reader's cursor stays behind what is begun anew.
            end = int(pieces[-1].cursor) if pieces else (self._table.clock() - EPOCH) // timedelta(microseconds=1)
            if pieces and pieces[-1].attempt == lease.attempt:
                known = max(pieces[-1].offset + len(pieces[-1].data) - offset, 0)
                offset, data = offset + known, data[known:]
            for first in range(0, len(data), LARGEST_PIECE_BYTES):
                piece = data[first : first + LARGEST_PIECE_BYTES]
                end += len(piece)
                pieces.append(
                    LogPiece(cursor=str(end), attempt=lease.attempt, offset=offset + first, data=piece),
                )
            pieces[:] = [piece for piece in pieces if int(piece.cursor) >= end - KEPT_LOG_BYTES]

    def read(self, experiment_id: ExperimentId, stream: str, *, after: str = "") -> list[LogPiece]:
        """Return what came after the cursor, without waiting."""
        check_cursor(after)
        with self._table.lock:
            pieces = list(self._logs.get((experiment_id, stream), ()))
        return [piece for piece in pieces if not after or int(piece.cursor) > int(after)]
