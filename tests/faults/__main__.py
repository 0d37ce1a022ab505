# ruff: noqa: T201 - printing is what it is for
"""Runs the faults, judges what was seen, prints a table: exit 1 for a broken invariant, 2 where it proves nothing."""

import argparse
import logging
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from services.process import MissingProgramError

from faults.checker import is_void, judge
from faults.driver import Wanted, run
from faults.failpoints import POINTS
from faults.failpoints import run_all as run_points
from faults.history import load_history
from faults.plan import KINDS, make_plan
from faults.selftest import self_test
from faults.servers import BROKERS
from faults.shows import DEFAULT_LEASE_SECONDS, SHOWS, show
from faults.table import make_table
from faults.world import Shape

BROKEN, VOID = 1, 2


def main(arguments: list[str]) -> int:
    """Do what was asked for and return the exit status."""
    asked = _parse(arguments)
    logging.disable(logging.CRITICAL)
    # So that what was started is ended also when this is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="jobqueue-faults-"))
    if asked.judge:
        return _report(asked.judge)
    try:
        if asked.failpoints:
            return _try_points(asked, folder)
        if asked.show:
            return _show(asked, folder)
        if asked.self_test:
            return self_test(folder, broker=asked.broker, only=tuple(asked.only), report=print)
        return _report(run(_wanted(asked), folder))
    except MissingProgramError as error:
        sys.exit(str(error))
    finally:
        print(f"history and logs: {folder}")


def _try_points(asked: argparse.Namespace, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    failed = run_points(folder, broker=asked.broker, names=asked.point, times=asked.times, report=_say)
    return BROKEN if failed else 0


def _show(asked: argparse.Namespace, folder: Path) -> int:
    seconds = asked.lease_seconds or DEFAULT_LEASE_SECONDS
    failed = 0
    for name in asked.show:
        (folder / name).mkdir(parents=True, exist_ok=True)
        failed += show(name, folder / name, broker=asked.broker, lease_seconds=seconds, report=_say)
    return BROKEN if failed else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _wanted(asked: argparse.Namespace) -> Wanted:
    shape = Shape(broker=asked.broker, store=asked.store, unsafe=tuple(asked.unsafe))
    print(f"seed {asked.seed}, {asked.count} experiments on {asked.broker}")
    wanted = Wanted(
        shape=shape,
        seed=asked.seed,
        count=asked.count,
        fault_count=asked.faults if asked.faults is not None else max(4, asked.count // 2),
        kinds=tuple(asked.kind),
        is_gentle=asked.gentle,
    )
    plan = make_plan(
        wanted.fault_count, seed=wanted.seed, broker=shape.broker, lease_seconds=shape.lease_seconds,
        kinds=wanted.kinds, is_gentle=wanted.is_gentle,
    )  # fmt: skip
    for fault in plan:
        where = f"node {fault.node + 1}" if fault.kind.is_of_node else ""
        print(f"  {fault.at_seconds:6.1f} s  {fault.kind.name}  {where}")
    return wanted


def _report(path: Path) -> int:
    facts = load_history(path)
    violations = judge(facts)
    print(make_table(facts, violations))
    if violations:
        return BROKEN
    if is_void(facts):
        print("void: fewer than nine of ten planned faults hit anything, or a node ran nothing")
        return VOID
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--broker", choices=BROKERS, default="rabbitmq")
    parser.add_argument("--store", choices=("s3", "file"), default="s3")
    parser.add_argument("--count", "-n", type=int, default=40, help="experiments (%(default)s)")
    parser.add_argument("--faults", type=int, help="faults besides duplicates (half as many as experiments)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="decides the plan; else chance")
    parser.add_argument("--kind", action="append", default=[], choices=[kind.name for kind in KINDS], metavar="KIND")
    parser.add_argument("--gentle", action="store_true", help="only faults that a short run has time for")
    parser.add_argument("--unsafe", action="append", default=[], metavar="PROTECTION", help="switch one off")
    parser.add_argument("--judge", type=Path, metavar="HISTORY", help="judge what was written down before")
    parser.add_argument("--self-test", action="store_true", help="is it seen when a protection is off?")
    parser.add_argument("--only", action="append", default=[], metavar="PROTECTION", help="of the self-test")
    parser.add_argument("--failpoints", action="store_true", help="kill a worker at each step of an attempt")
    parser.add_argument(
        "--point", action="append", default=[], choices=[point.name for point in POINTS], metavar="STEP"
    )
    parser.add_argument("--times", type=int, default=1, help="that each step is tried (%(default)s)")
    parser.add_argument("--show", action="append", default=[], choices=list(SHOWS), metavar="SHOW", help="measure one")
    parser.add_argument("--lease-seconds", type=float, help="of a show; else the default lease")
    parser.add_argument("--folder", type=Path, help="for the history and every log; else a new one")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
