"""A worker that is killed at each step of an attempt, one experiment at a time, and what is left to see afterwards.

Either the worker itself comes back, or one of another node comes in its place, and the first one when all is over.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

from faults.checker import judge
from faults.history import Fact, of_kind, only
from faults.invariants import Violation
from faults.seen import FINAL
from faults.steps import ARMED, arm, has_died
from faults.trials import SUCCEEDED, Stage, Trial, make_order, open_stage, reaches
from faults.world import Shape

Follower = Literal["itself", "another"]
FOLLOWERS: Final[tuple[Follower, ...]] = ("itself", "another")

_APP: Final = "faults.dying_worker"
_DIES: Final = timedelta(seconds=90)
_ENDS: Final = timedelta(seconds=120)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A step at which a worker dies, and what it takes to get there.

    Attributes:
        name: one of `STEPS`.
        what: in words.
        seconds: how long the container works.
        end: `STATE:REASON` that is right.
        attempts: how many there are when the worker itself comes back.
        asks: what is done to the experiment once its container lives.
    """

    name: str
    what: str
    seconds: float = 1.0
    end: str = SUCCEEDED
    attempts: int = 1
    asks: Literal["nothing", "a copy", "a cancel", "a drain"] = "nothing"


POINTS: Final = (
    Point(name="delivered", what="delivered, before the lease is asked for"),
    Point(name="leased", what="leased, before the lease file", attempts=2),
    Point(name="created", what="container created, not started", attempts=2),
    Point(name="started", what="container started, before the report of it"),
    Point(name="running", what="in the middle of the run", seconds=4.0),
    Point(name="exited", what="container exited, before its outputs are stored"),
    Point(name="uploading", what="while outputs are stored"),
    Point(name="uploaded", what="outputs stored, before the marker"),
    Point(name="marked", what="marker written, before the final report"),
    Point(name="reported", what="final report given, before the registry"),
    Point(name="finished", what="registry told, before the acknowledgement"),
    Point(name="deferred", what="a copy put off, before its acknowledgement", seconds=8.0, asks="a copy"),
    Point(
        name="cancelled",
        what="cancel: container stopped, before the marker",
        seconds=30.0,
        end="CANCELLED:CANCELLED_BY_USER",
        asks="a cancel",
    ),
    Point(name="stopped", what="drain: container stopped, not handed back", seconds=8.0, attempts=2, asks="a drain"),
    Point(name="drained", what="drain: handed back, before the end", seconds=8.0, attempts=2, asks="a drain"),
)


@contextmanager
def open_dying(folder: Path, *, broker: str, lease_seconds: float = 2.0) -> Iterator[Stage]:
    """Start a site of two nodes whose workers die where they are told to; none runs yet."""
    shape = Shape(
        broker=broker, store="file", lease_seconds=lease_seconds, slots=2, app=_APP, node_count=2, is_idle=True
    )
    os.environ[ARMED] = str(folder / "armed")
    try:
        with open_stage(shape, folder) as stage:
            yield stage
    finally:
        del os.environ[ARMED]


def try_point(stage: Stage, point: Point, *, follower: Follower, path: Path) -> list[Violation]:
    """Kill a worker at one point, wait until everything is over, and return what must not be.

    Args:
        follower: who goes on: the worker itself, or one of another node.
        path: where what was seen is written.
    """
    trial = Trial(stage, path, point=point.name, follower=follower)
    one, two = stage.world.nodes
    try:
        two.kill()
        one.start()
        _die(trial, point)
        (one if follower == "itself" else two).start()
        reaches(trial.is_final, within=_ENDS)
        # What it has left on its node only it removes.
        one.start()
        facts = trial.finish(within=_ENDS)
    finally:
        trial.close()
    return [*judge(facts), *_judge(point, follower, facts)]


def run_all(folder: Path, *, broker: str, names: Sequence[str], times: int, report: Callable[[str], object]) -> int:
    """Try points with both followers so many times; returns how many trials were not as they must be."""
    failed = 0
    with open_dying(folder, broker=broker) as stage:
        for point in (each for each in POINTS if each.name in names or not names):
            for follower in FOLLOWERS:
                paths = (folder / f"{point.name}-{follower}-{number}.jsonl" for number in range(1, times + 1))
                found = [try_point(stage, point, follower=follower, path=path) for path in paths]
                good = sum(not violations for violations in found)
                failed += times - good
                report(f"{point.name:<10} {point.what:<48} then {follower:<8} {good} of {times}")
                for violation in (each for violations in found for each in violations):
                    report(f"    {violation}")
    return failed


def _die(trial: Trial, point: Point) -> None:
    """Submit, and do what leads to the point; returns when the worker has died there."""
    armed = Path(os.environ[ARMED])
    worker = trial.world.nodes[0].worker
    arm(armed, point.name)
    trial.submit(make_order(point.name, seconds=point.seconds, end=point.end))
    if point.asks != "nothing":
        reaches(trial.live, within=_DIES)
    match point.asks:
        case "a copy":
            trial.copies.publish(1)
        case "a cancel":
            trial.cancel()
        case "a drain":
            os.kill(worker.pid, signal.SIGTERM)
    reaches(lambda: not worker.running, within=_DIES)
    is_hit = has_died(armed)
    armed.unlink(missing_ok=True)
    trial.history.add("fault", index=0, fault=point.name, phase="hit" if is_hit else "missed")


def _judge(point: Point, follower: Follower, facts: Sequence[Fact]) -> Iterator[Violation]:
    """Judge what is sure where nothing but one worker dies."""

    def violation(invariant: str, evidence: str) -> Violation:
        return Violation(invariant=invariant, experiment=f"{point.name}, then {follower}", evidence=evidence)

    if only(facts, "fault").get("phase") != "hit":
        yield violation("void", "the worker did not die there")
        return
    record, marker = only(facts, "record"), only(facts, "marker")
    for witness, fact in (("registry", record), ("marker", marker)):
        if f"{fact.get('state')}:{fact.get('reason')}" != point.end:
            yield violation("I1", f"the {witness} says {fact.get('state')} ({fact.get('reason')}), not {point.end}")
    most = point.attempts if follower == "itself" else 2
    if not record or record["attempt"] > most:
        yield violation("I9", f"{record.get('attempt')} attempts: {record.get('history')}; at most {most} are needed")
    finals = {
        (report["token"], report["sequence"], report["state"], report["reason"])
        for report in of_kind(facts, "report")
        # One whose publication was not confirmed was cancelled, and submitted again as another.
        if report["state"] in FINAL and report["experiment"] == record.get("experiment")
    }
    if len({(state, reason) for *_, state, reason in finals}) != 1 or len({token for token, *_ in finals}) != len(
        finals
    ):
        yield violation("I7", f"the end was not reported once by each who told it: {sorted(finals)}")
