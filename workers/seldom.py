"""How often something is told that happens again and again: at once, then once in a while, with how often it did."""


class Seldom:
    """Of one thing. One thread at a time.

    Args:
        every_seconds: so long it is not told again.
    """

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self._told_at_seconds = float("-inf")
        self._untold = 0

    def note(self) -> None:
        """Note that it has happened."""
        self._untold += 1

    def take(self, now_seconds: float) -> int:
        """Return how often it has happened since it was told; 0 when that is never, or it is too soon to tell."""
        if now_seconds - self._told_at_seconds < self._every_seconds:
            return 0
        count, self._untold = self._untold, 0
        if count:
            self._told_at_seconds = now_seconds
        return count
