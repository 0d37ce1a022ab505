"""Switches off one protection at a time and demands that the checker sees it: a suite that cannot see proves nothing.

Every trial is a plan of its own, made of the faults which that protection stands against; the same plan with every
protection on has to be green.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from faults.checker import judge
from faults.driver import Wanted, run
from faults.history import load_history
from faults.table import make_table
from faults.world import Shape

_TRIES: Final = 3
_SEED: Final = 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What shows that a protection is missing.

    Attributes:
        kinds: of faults.
        breaks: invariants, one of which at least is broken without it.
        covered_by: other protections that make good what it fails to prevent; they are off in both runs.
        is_at_once: everything is submitted at once, so that messages wait in the broker.
    """

    kinds: tuple[str, ...]
    breaks: frozenset[str]
    count: int = 8
    fault_count: int = 4
    duplicate_seconds: float = 0.3
    covered_by: tuple[str, ...] = ()
    is_at_once: bool = False


TRIALS: Final[Mapping[str, Trial]] = {
    "guard": Trial(kinds=("worker.stop", "worker.kill_and_stay_away"), breaks=frozenset({"I2", "I5"})),
    "quarantine": Trial(kinds=("registry.wipe",), breaks=frozenset({"I2"}), fault_count=6, duplicate_seconds=0.15),
    "clock": Trial(kinds=("registry.clock",), breaks=frozenset({"I2"}), fault_count=6, duplicate_seconds=0.15),
    "token": Trial(kinds=("worker.stop", "cut.registry"), breaks=frozenset({"I2", "I7", "I8", "I10"})),
    "marker": Trial(kinds=("store.loses_answers",), breaks=frozenset({"I10", "I3"}), count=16, fault_count=9),
    "defer": Trial(
        kinds=("worker.kill_and_stay_away", "container.kill"), breaks=frozenset({"I1"}), covered_by=("sweep",)
    ),
    "consumer": Trial(kinds=("messages.malformed",), breaks=frozenset({"I14", "I6", "I1"}), fault_count=2),
    "sweep": Trial(kinds=("broker.wipe",), breaks=frozenset({"I1"}), count=24, fault_count=1, is_at_once=True),
}


def self_test(folder: Path, *, broker: str, only: tuple[str, ...], report: Callable[[str], object]) -> int:
    """Try every protection; returns 1 when one can be missing without being missed, or when its plan is never green."""
    blind = [name for name in only or TRIALS if not _try(name, folder / name, broker=broker, report=report)]
    report(f"not seen: {', '.join(blind)}" if blind else "every missing protection was seen")
    return 1 if blind else 0


def _try(name: str, folder: Path, *, broker: str, report: Callable[[str], object]) -> bool:
    trial = TRIALS[name]
    safe = _broken(trial, folder / "on", broker=broker, unsafe=trial.covered_by, seed=_SEED)
    report(f"{name:<12} on   {'green' if not safe else f'red: {sorted(safe)}'}")
    seen: frozenset[str] = frozenset()
    # A protection against a race is not needed every time; that is no rerun of a red one.
    for seed in range(_SEED, _SEED + _TRIES):
        broken = _broken(trial, folder / f"off-{seed}", broker=broker, unsafe=(name, *trial.covered_by), seed=seed)
        report(f"{name:<12} off  {f'red: {sorted(broken)}' if broken else 'green'}")
        seen = broken & trial.breaks
        if seen:
            break
    return bool(seen) and not safe


def _broken(trial: Trial, folder: Path, *, broker: str, unsafe: tuple[str, ...], seed: int) -> frozenset[str]:
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
    violations = judge(facts)
    (folder / "table.txt").write_text(make_table(facts, violations))
    return frozenset(violation.invariant for violation in violations)
