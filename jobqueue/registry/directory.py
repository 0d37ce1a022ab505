"""What operators publish, such as the keys of nodes: a port of the registry, which is not believed and only keeps."""

from typing import Protocol


class Directory(Protocol):
    """One signed document of each operator. Raises `RegistryUnavailable` when the registry does not answer."""

    def put(self, operator: str, document: bytes) -> None:
        """Keep an operator's document in place of the one before."""
        ...

    def documents(self) -> dict[str, bytes]:
        """Return the documents, by operator."""
        ...
