"""Whose turn it is to be asked how much waits there, where each queue has to be asked by itself."""

from collections.abc import Collection, Iterable


class Askings:
    """What each queue answered last, and when it was its turn."""

    def __init__(self) -> None:
        self._answers: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0

    def next(self, queues: Iterable[str], *, limit: int) -> list[str]:
        """Return which queues to ask now: new ones, then those in which something waited, then the longest unasked."""

        def rank(queue: str) -> tuple[bool, bool, int]:
            return queue in self._answers, not self._answers.get(queue), self._turns.get(queue, 0)

        return sorted(queues, key=rank)[:limit]

    def note(self, queue: str, waiting: int) -> None:
        """Note an answer."""
        self._turn += 1
        self._answers[queue], self._turns[queue] = waiting, self._turn

    def answers(self, queues: Collection[str]) -> dict[str, int | None]:
        """Return the last answer of each of these queues, and forget all others."""
        self._answers = {queue: waiting for queue, waiting in self._answers.items() if queue in queues}
        return {queue: self._answers.get(queue) for queue in queues}
