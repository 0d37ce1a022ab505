"""What a lost node, a registry that is away and a node that stands still come to, measured with the default lease.

Each show is one experiment or ten, one thing that is broken, and a line about what was seen; all of it is judged too.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil

from faults.checker import judge
from faults.history import clock_seconds
from faults.invariants import Violation
from faults.nodes import Node
from faults.seen import find_overlaps, put_in_order
from faults.ticks import Witness
from faults.trials import Stage, Trial, make_order, open_stage, reaches
from faults.world import Shape, wait_for_registry

DEFAULT_LEASE_SECONDS: Final = 60.0
_LATER_SECONDS: Final = 15.0
_BEGINS: Final = timedelta(seconds=60)
_AWAY_SECONDS: Final = 300.0
_COUNT: Final = 10

Report = Callable[[str], object]
Show = Callable[[Stage, Path, Report], list[Violation]]


def show(name: str, folder: Path, *, broker: str, lease_seconds: float, report: Report) -> int:
    """Do one show; returns how much of it is not as it must be."""
    shape = Shape(broker=broker, store="file", lease_seconds=lease_seconds, slots=_COUNT, node_count=2)
    report(f"{name} on {broker}, lease {lease_seconds:g} s")
    with open_stage(shape, folder) as stage:
        violations = SHOWS[name](stage, folder / f"{name}.jsonl", report)
    for violation in violations:
        report(f"    {violation}")
    return len(violations)


def _kill_worker(stage: Stage, path: Path, report: Report) -> list[Violation]:
    """Kill the worker and the guard of a node, and start the worker again within the lease."""
    with _trial(stage, path) as trial:
        trial.submit(make_order("worker-killed", seconds=30))
        (witness,) = _wait_live(trial, 1)
        node = _node_of(trial, witness)
        time.sleep(5)
        node.kill_all()
        killed = clock_seconds()
        time.sleep(3)
        node.start()
        facts = trial.finish(within=_BEGINS)
        containers = trial.containers()
        gap = max(after - before for before, after in pairwise(witness.ticks))
        report(
            f"  killed {killed - witness.ticks[0]:.1f} s after its start and back: "
            f"{len(containers)} container, longest pause between its ticks {gap:.2f} s, "
            f"attempt {trial.record(witness.experiment).attempt}"
        )
        return [*judge(facts), *_demand(len(containers) == 1 and gap < 1, "the container was stopped")]


def _lose_machine(stage: Stage, path: Path, report: Report) -> list[Violation]:
    """Lose a node for good, its container too; how long until another one starts the next attempt?"""
    lease_seconds = stage.world.shape.lease_seconds
    with _trial(stage, path) as trial:
        trial.submit(make_order("machine-lost", seconds=30))
        (witness,) = _wait_live(trial, 1)
        node = _node_of(trial, witness)
        # In the middle of the time between two renewals, give or take.
        time.sleep(lease_seconds / 6)
        node.kill_all()
        trial.world.engine.client.api.kill(witness.container)
        lost = clock_seconds()
        limit = lease_seconds + _LATER_SECONDS
        is_found = reaches(lambda: trial.containers()[1:] and trial.live(), within=timedelta(seconds=3 * limit))
        second = trial.containers()[-1]
        took = second.ticks[0] - lost if is_found else float("inf")
        report(f"  {node.name} was lost; attempt {second.attempt} began on {second.node} {took:.1f} s later")
        reaches(trial.is_final, within=_BEGINS)
        # Where it comes back all the same it removes what it has left.
        node.start()
        facts = trial.finish(within=_BEGINS)
        return [*judge(facts), *_demand(took <= limit, f"attempt 2 began {took:.1f} s later, not within {limit:g} s")]


def _take_registry_away(stage: Stage, path: Path, report: Report) -> list[Violation]:
    """Take the registry away for five minutes while ten experiments run."""
    lease_seconds = stage.world.shape.lease_seconds
    away_seconds = _AWAY_SECONDS * lease_seconds / DEFAULT_LEASE_SECONDS
    with _trial(stage, path) as trial:
        trial.submit(*(make_order(f"run-{number}", seconds=1.5 * lease_seconds) for number in range(_COUNT)))
        witnesses = _wait_live(trial, _COUNT)
        began = clock_seconds()
        trial.world.registry.process.stop()
        time.sleep(away_seconds)
        frozen = [each for each in witnesses if not each.is_live]
        silent = [each.ticks[-1] - began for each in witnesses]
        trial.world.registry.process.start()
        wait_for_registry(trial.world)
        back = clock_seconds()
        facts = trial.finish(within=timedelta(seconds=3 * lease_seconds) + _BEGINS)
        thawed = [next((tick - back for tick in each.ticks if tick > back), None) for each in witnesses]
        attempts = [trial.record(name).attempt for name in trial.names]
        states = [str(trial.record(name).state) for name in trial.names]
        report(
            f"  registry away for {back - began:.0f} s during {len(witnesses)} runs: {len(frozen)} frozen, "
            f"{min(silent):.1f} to {max(silent):.1f} s after it went; "
            f"{sum(each is not None for each in thawed)} went on, "
            f"{_range([each for each in thawed if each is not None])} s after it was back; "
            f"{states.count('SUCCEEDED')} succeeded; attempts {sorted(set(attempts))}, "
            f"{len(trial.containers())} containers"
        )
        is_right = len(frozen) == len(witnesses) and set(attempts) == {1} and set(states) == {"SUCCEEDED"}
        return [*judge(facts), *_demand(is_right, f"frozen {len(frozen)}, attempts {attempts}, states {states}")]


def _stop_machine(stage: Stage, path: Path, report: Report) -> list[Violation]:
    """Stop a worker and its guard together for two leases: the one case in which two attempts may compute at once."""
    lease_seconds = stage.world.shape.lease_seconds
    with _trial(stage, path) as trial:
        trial.submit(make_order("machine-stopped", seconds=3 * lease_seconds))
        (witness,) = _wait_live(trial, 1)
        node = _node_of(trial, witness)
        stopped = [psutil.Process(node.worker.pid), *node.guards()]
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        # RabbitMQ takes a stopped worker for alive; a copy of the message is for who is.
        trial.copies.publish(1)
        time.sleep(2 * lease_seconds)
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        facts = trial.finish(within=timedelta(seconds=4 * lease_seconds) + _BEGINS)
        (seen,) = put_in_order(facts).experiments.values()
        overlap = sum(seconds for *_, seconds in find_overlaps(seen.intervals))
        ends = {f"{state} ({reason})" for state, reason in seen.ends.values()}
        report(
            f"  worker and guard stopped for {2 * lease_seconds:.0f} s: {len(seen.containers)} attempts, "
            f"at once for {overlap:.1f} s; {len(ends)} final state: {', '.join(ends)}; "
            f"outputs of token {seen.marker.get('token')}, {'whole' if not seen.outputs.get('problems') else 'broken'}"
        )
        found = [each for each in judge(facts) if each.invariant != "I2"]
        return [*found, *_demand(len(seen.containers) == 2, f"{len(seen.containers)} containers, not two")]


SHOWS: Final[Mapping[str, Show]] = {
    "worker-killed": _kill_worker,
    "machine-lost": _lose_machine,
    "registry-away": _take_registry_away,
    "machine-stopped": _stop_machine,
}


@contextmanager
def _trial(stage: Stage, path: Path) -> Iterator[Trial]:
    trial = Trial(stage, path)
    try:
        yield trial
    finally:
        trial.close()


def _wait_live(trial: Trial, count: int) -> list[Witness]:
    reaches(lambda: len(trial.live()) == count, within=_BEGINS)
    return trial.live()


def _node_of(trial: Trial, witness: Witness) -> Node:
    (node,) = (each for each in trial.world.nodes if each.name == witness.node)
    return node


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}" if values else "no"


def _demand(is_true: bool, otherwise: str) -> list[Violation]:  # noqa: FBT001 - a state, not an option
    return [] if is_true else [Violation(invariant="show", experiment="site", evidence=otherwise)]
