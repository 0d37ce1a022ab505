"""Whose turn it is to be asked how much waits there, where each queue has to be asked by itself."""

import math
from collections.abc import Collection, Iterable
from typing import Final

# One of so many questions is for whoever has waited longest for one, lest queues that are never empty take them all.
_IN_TURN: Final = 3


class Askings:
    """What each queue answered last, and when it was its turn."""

    def __init__(self) -> None:
        self._answers: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0

    def next(self, queues: Iterable[str], *, limit: int) -> list[str]:
        """Return which queues to ask now: the longest unasked, new ones first, then those in which something waited."""
        by_turn = sorted(queues, key=lambda queue: self._turns.get(queue, 0))
        in_turn = math.ceil(limit / _IN_TURN)

        def rank(queue: str) -> tuple[bool, bool]:
            return queue in self._turns, not self._answers.get(queue)

        return (by_turn[:in_turn] + sorted(by_turn[in_turn:], key=rank))[:limit]

    def note(self, queue: str, waiting: int) -> None:
        """Note an answer."""
        self.skip(queue)
        self._answers[queue] = waiting

    def skip(self, queue: str) -> None:
        """Note that a queue was asked and did not answer: it is the others' turn first."""
        self._turn += 1
        self._turns[queue] = self._turn

    def answers(self, queues: Collection[str]) -> dict[str, int | None]:
        """Return the last answer of each of these queues, and forget all others."""
        self._answers = {queue: waiting for queue, waiting in self._answers.items() if queue in queues}
        self._turns = {queue: turn for queue, turn in self._turns.items() if queue in queues}
        return {queue: self._answers.get(queue) for queue in queues}
