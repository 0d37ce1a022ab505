"""A history put in order: what was seen of each experiment, for the invariants to look at."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Final

from faults.history import Fact, of_kind, only

# A container that has not ticked for so long was not computing in between: it was frozen, or starved.
LONGEST_GAP_SECONDS: Final = 0.7
# The clock that containers print has a resolution of 0.01 s.
OVERLAP_SECONDS: Final = 0.05
FINAL: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
_WIPES: Final = {"registry.wipe": "registry", "broker.wipe": "broker", "queue.delete": "broker"}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A time in which one container computed."""

    token: int
    node: str
    begin_seconds: float
    end_seconds: float


@dataclass(kw_only=True)
class Seen:
    """What was seen of one experiment.

    Attributes:
        submitted: the fact of its submission.
        containers: by the order in which they began.
        reports: as they came, repetitions too.
        marker, record, outputs: as they were at the end; empty where there was none.
        keys: every object below its prefix.
        marker_puts: each write of its marker that the store accepted.
    """

    submitted: Fact
    containers: list[Fact] = field(default_factory=list)
    reports: list[Fact] = field(default_factory=list)
    marker: Fact = field(default_factory=dict)
    record: Fact = field(default_factory=dict)
    outputs: Fact = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    marker_puts: list[Fact] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its id."""
        return str(self.submitted["experiment"])

    @property
    def ends(self) -> dict[str, tuple[str, str]]:
        """The final state and reason that each witness names."""
        found = {
            witness: (str(fact["state"]), str(fact["reason"]))
            for witness, fact in (("marker", self.marker), ("registry", self.record))
            if fact.get("state") in FINAL
        }
        last = [report for report in self.reports if report["state"] in FINAL]
        return found | ({"report": (last[-1]["state"], last[-1]["reason"])} if last else {})

    @property
    def intervals(self) -> list[Interval]:
        """When which of its containers computed."""
        return [each for container in self.containers for each in find_intervals(container)]

    @property
    def ticks(self) -> list[float]:
        """Every sign of life, in order."""
        return sorted(tick for container in self.containers for tick in container["ticks"])


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole history in order.

    Attributes:
        facts: all of it.
        about: the fact of its beginning: seed, broker, limits.
        experiments: by id.
        wipes: what was emptied, and when.
    """

    facts: Sequence[Fact]
    about: Fact
    experiments: dict[str, Seen]
    wipes: dict[str, list[float]]

    @cached_property
    def behind_seconds(self) -> float:
        """What makes a report's own time, on the wall's clock, one of the history."""
        return min((fact["t"] - fact["at"] for fact in of_kind(self.facts, "report")), default=0.0)

    @property
    def end(self) -> Fact:
        """The fact of its end."""
        return only(self.facts, "end")


def put_in_order(facts: Sequence[Fact]) -> Run:
    """Return a history by experiment."""
    experiments = {fact["experiment"]: Seen(submitted=fact) for fact in of_kind(facts, "submitted")}
    for fact in facts:
        seen = experiments.get(fact.get("experiment", ""))
        if seen is not None:
            _note(seen, fact)
    for seen in experiments.values():
        seen.containers.sort(key=lambda container: container["began"])
    wipes = defaultdict(list)
    for fact in of_kind(facts, "fault"):
        if fact["fault"] in _WIPES and fact["phase"] == "hit":
            wipes[_WIPES[fact["fault"]]].append(fact["t"])
    return Run(facts=facts, about=only(facts, "run"), experiments=experiments, wipes=dict(wipes))


def _note(seen: Seen, fact: Fact) -> None:
    match fact["kind"]:
        case "container":
            seen.containers.append(fact)
        case "report":
            seen.reports.append(fact)
        case "marker":
            seen.marker = fact
        case "record":
            seen.record = fact
        case "outputs":
            seen.outputs = fact
        case "objects":
            seen.keys = fact["keys"]
        case "marker_put" if 200 <= fact["status"] < 300:
            seen.marker_puts.append(fact)


def find_intervals(container: Fact) -> list[Interval]:
    """Return when a container computed, as it says itself."""
    found: list[Interval] = []
    ticks = sorted(container["ticks"])
    begin = ticks[0] if ticks else 0.0
    for before, after in [*pairwise(ticks), (ticks[-1], float("inf"))] if ticks else []:
        if after - before > LONGEST_GAP_SECONDS:
            found.append(
                Interval(token=container["token"], node=container["node"], begin_seconds=begin, end_seconds=before)
            )
            begin = after
    return found


def find_overlaps(intervals: Iterable[Interval]) -> list[tuple[Interval, Interval, float]]:
    """Return each pair of intervals of different attempts that overlap, and for how many seconds."""
    ordered = sorted(intervals, key=lambda each: each.begin_seconds)
    found = []
    for index, one in enumerate(ordered):
        for other in ordered[index + 1 :]:
            if other.begin_seconds >= one.end_seconds:
                break
            if other.token != one.token:
                found.append((one, other, min(one.end_seconds, other.end_seconds) - other.begin_seconds))
    return found
