"""What operators publish, in memory."""

from collections.abc import Mapping

from jobqueue.registry.memory_table import Table


class MemoryDirectory:
    """`Directory` in memory."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._documents: dict[str, bytes] = table.mapping()

    def put(self, documents: Mapping[str, bytes], *, seen: Mapping[str, bytes]) -> bool:
        """Keep the documents of some operators, unless one was replaced since it was seen."""
        with self._table.lock:
            if any(self._documents.get(operator) != seen.get(operator) for operator in documents):
                return False
            self._documents.update(documents)
            return True

    def documents(self) -> dict[str, bytes]:
        """Return the documents, by operator."""
        with self._table.lock:
            return dict(self._documents)
