"""What operators publish, in memory."""


class MemoryDirectory:
    """`Directory` in memory."""

    def __init__(self) -> None:
        self._documents: dict[str, bytes] = {}

    def put(self, operator: str, document: bytes) -> None:
        """Keep an operator's document."""
        self._documents[operator] = document

    def documents(self) -> dict[str, bytes]:
        """Return the documents, by operator."""
        return dict(self._documents)
