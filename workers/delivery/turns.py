"""Whose turn it is among request queues: that of the one served longest ago, so that none starves beside a full one."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

# At so many queues a worker listens at most while its patterns find more: each one costs a consumer at the broker.
LISTENED: Final = 8
# So many of them are kept for queues of which nobody knows what waits there; the others wait until that is known.
UNKNOWN: Final = 2


class Turns:
    """In which order queues were served by this worker. Main thread only."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._turn = 0

    def note(self, queue: str) -> None:
        """Note that a message of a queue was taken now."""
        self._turn += 1
        self._served[queue] = self._turn

    def order(self, queues: Iterable[str]) -> list[str]:
        """Return queues, those first that were never served, then the one that was served longest ago."""
        return sorted(queues, key=lambda queue: (self._served.get(queue, 0), queue))


def choose(
    waiting: Mapping[str, int | None], *, turns: Turns, named: Collection[str] = (), is_charging: bool = False
) -> list[str]:
    """Return the request queues that a worker is to listen at now.

    Few queues are listened at all the time. Of many, those in which something waits have their turn, and a few of which
    it is not known; where listening at an empty one costs nothing, places that are left go to those that were served
    last, since more may come there.

    Args:
        waiting: how many messages wait in each queue that may be served; None: it is not known.
        turns: the order in which they were served.
        named: those of them that are listened at in any case.
        is_charging: listening at an empty queue costs something.
    """
    found = [queue for queue in waiting if queue not in named]
    if len(found) <= (1 if is_charging else LISTENED):
        return turns.order(waiting)
    full = turns.order(queue for queue in found if waiting[queue])
    unknown = turns.order(queue for queue in found if waiting[queue] is None)
    full = [*full[: LISTENED - min(UNKNOWN, len(unknown))], *unknown]
    empty = [] if is_charging else [queue for queue in reversed(turns.order(found)) if waiting[queue] == 0]
    return turns.order([*(queue for queue in waiting if queue in named), *[*full, *empty][:LISTENED]])
