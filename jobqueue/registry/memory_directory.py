"""What operators publish, in memory."""

import threading
from collections.abc import Mapping


class MemoryDirectory:
    """`Directory` in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._documents: dict[str, bytes] = {}

    def put(self, documents: Mapping[str, bytes], *, seen: Mapping[str, bytes]) -> bool:
        """Keep the documents of some operators, unless one was replaced since it was seen."""
        with self._lock:
            if any(self._documents.get(operator) != seen.get(operator) for operator in documents):
                return False
            self._documents.update(documents)
            return True

    def documents(self) -> dict[str, bytes]:
        """Return the documents, by operator."""
        with self._lock:
            return dict(self._documents)
