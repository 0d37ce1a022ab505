"""Which statements of which attempts a listener has heard: what comes again is known, and so is what is missing."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from jobqueue.report import Report

_GAPS: Final = 100


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What was heard of one attempt.

    Attributes:
        next: the number after the largest one.
        gaps: what is missing below that.
    """

    next: int = 0
    gaps: tuple[range, ...] = ()

    def has(self, sequence: int) -> bool:
        return sequence < self.next and not any(sequence in gap for gap in self.gaps)

    def with_number(self, sequence: int) -> "_Told":
        if sequence >= self.next:
            gaps = (*self.gaps, range(self.next, sequence)) if sequence > self.next else self.gaps
            return _Told(next=sequence + 1, gaps=gaps[-_GAPS:])
        halves = [half for gap in self.gaps for half in _without(gap, sequence)]
        return _Told(next=self.next, gaps=tuple(halves)[-_GAPS:])


class Heard:
    """What the newest attempts have told; one thread uses it.

    Args:
        attempts: how many are remembered, those that spoke last.
    """

    def __init__(self, *, attempts: int) -> None:
        self._attempts = attempts
        self._told: OrderedDict[tuple[str, int], _Told] = OrderedDict()

    def is_new(self, report: Report) -> bool:
        """Tell whether this number of its attempt has not been noted; what is about no experiment always is new."""
        return not report.experiment_id or not self._of(report).has(report.sequence)

    def missing_before(self, report: Report) -> range:
        """Return the numbers of its attempt between the largest one that was noted and this one."""
        return range(self._of(report).next, report.sequence) if report.experiment_id else range(0)

    def note(self, report: Report) -> None:
        """Remember it."""
        if not report.experiment_id:
            return
        key = (report.experiment_id, report.token)
        self._told[key] = self._of(report).with_number(report.sequence)
        self._told.move_to_end(key)
        if len(self._told) > self._attempts:
            self._told.popitem(last=False)

    def _of(self, report: Report) -> _Told:
        return self._told.get((report.experiment_id, report.token), _Told())


def _without(gap: range, number: int) -> list[range]:
    if number not in gap:
        return [gap]
    return [half for half in (range(gap.start, number), range(number + 1, gap.stop)) if half]
