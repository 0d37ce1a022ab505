"""What operators publish, such as the keys of nodes: a port of the registry, which is not believed and only keeps."""

from collections.abc import Mapping
from typing import Protocol


class Directory(Protocol):
    """One signed document of each operator. Raises `RegistryUnavailable` when the registry does not answer."""

    def put(self, documents: Mapping[str, bytes], *, seen: Mapping[str, bytes]) -> bool:
        """Keep the documents of some operators, all of them or none, in the place of those before.

        Args:
            documents: by operator.
            seen: what `documents` has returned before.

        Returns:
            Whether they are kept: not where one of these operators' was replaced since, perhaps on another machine.
        """
        ...

    def documents(self) -> dict[str, bytes]:
        """Return the documents, by operator."""
        ...
