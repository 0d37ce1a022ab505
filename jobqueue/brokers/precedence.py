"""What a worker takes next of one request queue: what lies in the queue served before it, but not always.

What has waited once already, and what was submitted as `fast`, goes ahead of the backlog. A stream of that must not
keep the backlog waiting for ever, so after some of it in a row one of the others has its turn.
"""

from collections import Counter
from typing import Final

from jobqueue.routing import first_queue, is_first_queue, served_queue

# With at most fifteen minutes for each fast experiment, somebody at the head of the backlog waits an hour at most.
IN_A_ROW: Final = 4


class Precedence:
    """What was taken of each request queue lately. Used by one thread."""

    def __init__(self) -> None:
        self._streaks: Counter[str] = Counter()

    def order(self, queue: str) -> tuple[str, str]:
        """Return the two queues through which the messages of a request queue come, the one to ask first in front."""
        first = first_queue(queue)
        return (queue, first) if self.is_others_turn(queue) else (first, queue)

    def is_others_turn(self, queue: str) -> bool:
        """Tell whether so much went ahead in a row that what lies in the request queue itself is next."""
        return self._streaks[queue] >= IN_A_ROW

    def left(self, queue: str) -> int:
        """Return how many may go ahead before the others' next turn, at least one."""
        return IN_A_ROW - self._streaks[queue] % IN_A_ROW

    def note(self, name: str) -> None:
        """Note that a message was taken from one of the two, or that the request queue had its turn."""
        queue = served_queue(name)
        self._streaks[queue] = self._streaks[queue] + 1 if is_first_queue(name) else 0

    def note_refused(self, name: str) -> None:
        """Note that a message from one of the two was refused: what goes ahead had its turn, the others still have it.

        Else what goes ahead would keep the others waiting for as long as a flood lies before them.
        """
        if is_first_queue(name):
            self.note(name)
