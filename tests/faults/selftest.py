"""Switches off one protection at a time and demands that the checker sees it: a suite that cannot see proves nothing.

Every trial is a plan of its own, made of the faults which that protection stands against; the same plan with every
protection on has to be green.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from faults.checker import is_void, judge
from faults.driver import Wanted, run
from faults.history import Fact, load_history
from faults.invariants import Violation
from faults.table import make_table
from faults.world import Shape

_TRIES: Final = 3
_SEED: Final = 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What shows that a protection is missing.

    Attributes:
        kinds: of faults.
        breaks: invariants, one of which at least is broken without it; what tells most is first.
        covered_by: other protections that make good what it fails to prevent; they are off in both runs.
        is_at_once: everything is submitted at once, so that messages wait in the broker.
    """

    kinds: tuple[str, ...]
    breaks: tuple[str, ...]
    count: int = 8
    fault_count: int = 4
    duplicate_seconds: float = 0.3
    covered_by: tuple[str, ...] = ()
    is_at_once: bool = False


TRIALS: Final[Mapping[str, Trial]] = {
    "guard": Trial(kinds=("worker.stop", "worker.kill_and_stay_away"), breaks=("I2", "I5")),
    "quarantine": Trial(kinds=("registry.wipe",), breaks=("I2",), count=14, fault_count=12, duplicate_seconds=0.15),
    "clock": Trial(kinds=("registry.clock",), breaks=("I2",), fault_count=6, duplicate_seconds=0.15),
    "token": Trial(kinds=("worker.stop", "cut.registry"), breaks=("I2", "I7", "I8", "I10")),
    "marker": Trial(kinds=("store.loses_answers",), breaks=("I10", "I3"), count=16, fault_count=9),
    "defer": Trial(kinds=("worker.kill_and_stay_away", "container.kill"), breaks=("I1",), covered_by=("sweep",)),
    "consumer": Trial(kinds=("messages.malformed",), breaks=("I14", "I6", "I1"), fault_count=2),
    "sweep": Trial(kinds=("broker.wipe",), breaks=("I1",), count=24, fault_count=1, is_at_once=True),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one protection's trial came to.

    Attributes:
        on: what was broken with it; "void" where too few faults hit anything.
        off: what was broken without it.
        evidence: the first of what shows that it was missing.
    """

    name: str
    on: frozenset[str]
    off: frozenset[str]
    evidence: str = ""

    @property
    def is_as_demanded(self) -> bool:
        """Tell whether it is green with the protection, and without it red for a reason that the protection names."""
        return not self.on and not self.off.isdisjoint(TRIALS[self.name].breaks)


def self_test(folder: Path, *, broker: str, only: tuple[str, ...], report: Callable[[str], object]) -> int:
    """Try every protection; returns 1 when one can be missing without being missed, or when its plan is not green."""
    rows = [_try(name, folder / name, broker=broker, report=report) for name in only or TRIALS]
    report("\n".join(["", *make_rows(rows)]))
    bad = [row.name for row in rows if not row.is_as_demanded]
    report(f"not as demanded: {', '.join(bad)}" if bad else "every missing protection was seen")
    return 1 if bad else 0


def make_rows(rows: Sequence[Row]) -> list[str]:
    """Return the table of the self-test, as lines."""
    lines = [f"{'off':<12}{'on':<12}{'off':<18}evidence"]
    for row in rows:
        mark = "" if row.is_as_demanded else "  <-- not as demanded"
        lines.append(f"{row.name:<12}{_colour(row.on):<12}{_colour(row.off):<18}{row.evidence}{mark}")
    return lines


def _colour(broken: frozenset[str]) -> str:
    return ", ".join(sorted(broken)) if broken else "green"


def _try(name: str, folder: Path, *, broker: str, report: Callable[[str], object]) -> Row:
    trial = TRIALS[name]
    facts = _run(trial, folder / "on", broker=broker, unsafe=trial.covered_by, seed=_SEED)
    on = frozenset(each.invariant for each in judge(facts)) | ({"void"} if is_void(facts) else set())
    report(f"{name:<12} on   {_colour(on)}")
    row = Row(name=name, on=on, off=frozenset())
    # A protection against a race is not needed every time; that is no rerun of a red one.
    for seed in range(_SEED, _SEED + _TRIES):
        facts = _run(trial, folder / f"off-{seed}", broker=broker, unsafe=(name, *trial.covered_by), seed=seed)
        found = judge(facts)
        off = frozenset(each.invariant for each in found)
        report(f"{name:<12} off  {_colour(off)}")
        row = replace(row, off=off, evidence=_find_evidence(found, trial))
        if row.evidence:
            break
    return row


def _find_evidence(found: Sequence[Violation], trial: Trial) -> str:
    by_weight = sorted(
        (each for each in found if each.invariant in trial.breaks), key=lambda each: trial.breaks.index(each.invariant)
    )
    return str(by_weight[0]) if by_weight else ""


def _run(trial: Trial, folder: Path, *, broker: str, unsafe: tuple[str, ...], seed: int) -> list[Fact]:
    wanted = Wanted(
        shape=Shape(broker=broker, unsafe=unsafe),
        seed=seed,
        count=trial.count,
        fault_count=trial.fault_count,
        kinds=trial.kinds,
        duplicate_seconds=trial.duplicate_seconds,
        is_at_once=trial.is_at_once,
    )
    facts = load_history(run(wanted, folder))
    (folder / "table.txt").write_text(make_table(facts, judge(facts)))
    return facts
