"""What the experiments of each request queue ask for, learnt from their messages: a port of the registry."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Final, Protocol

from jobqueue.resources import Resources

# What a queue holds may change, and its first message may be unlike the others: it is asked again after so long.
LEARNT_FOR: Final = timedelta(minutes=5)


class Needs(Protocol):
    """The least that the messages of a queue were seen to ask for, each amount by itself.

    So a queue is skipped only by workers into which none of what was seen fits. Everything that is known of a queue is
    forgotten `LEARNT_FOR` after the first message it was learnt from. Raises `RegistryUnavailable`.
    """

    def note(self, queue: str, resources: Resources) -> None:
        """Note what one message asks for."""
        ...

    def known(self, queues: Sequence[str] = ()) -> dict[str, Resources]:
        """Return what is known, by queue: of these queues, or of all when none is named."""
        ...


def least(one: Resources, other: Resources) -> Resources:
    """Return the lower one of each amount."""
    amounts = asdict(one)
    return Resources(**{name: min(amount, amounts[name]) for name, amount in asdict(other).items()})
