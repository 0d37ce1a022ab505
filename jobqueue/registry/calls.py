"""Questions that whoever serves them answers: the port.

A question is taken by one server; it is offered again while nobody has answered it, so that it outlives a server that
was killed over it. Whoever answers must not mind to be asked twice.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol

# So many may wait to be taken; of more the oldest are forgotten.
MOST_WAITING: Final = 10_000
OFFERED_AGAIN: Final = timedelta(seconds=3)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A question, and the name that its answer goes by."""

    name: str
    question: bytes = field(repr=False)


class Calls(Protocol):
    """Questions and answers. Raises `RegistryUnavailable` when the registry does not answer."""

    def ask(self, question: bytes, *, within: timedelta) -> bytes | None:
        """Return the answer; None when nobody has given one in time."""
        ...

    def take(self, *, within: timedelta) -> Call | None:
        """Return a question that nobody has answered, the oldest first; None when none came in time."""
        ...

    def answer(self, call: Call, reply: bytes) -> None:
        """Answer a question; nobody may be waiting any more."""
        ...
