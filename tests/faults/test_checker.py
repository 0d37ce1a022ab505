"""What the checker says of histories that were made up: green when nothing is wrong, and by its name what is."""

from typing import Any

import pytest

from faults.checker import is_void, judge
from faults.history import Fact
from faults.selftest import TRIALS, Row, make_rows
from jobqueue.unprotected import Protection

_ABOUT = {
    "seed": 1,
    "broker": "rabbitmq",
    "store": "s3",
    "platform_budget": 5,
    "recovery_limit_seconds": 100,
    "cores": 2,
}
_NAME = "exp_1"


def _facts(*more: Fact, without: str = "") -> list[Fact]:
    """Return the history of one experiment that succeeded on one worker, and something more."""
    final: dict[str, Any] = {
        "experiment": _NAME,
        "token": 7,
        "attempt": 1,
        "state": "SUCCEEDED",
        "reason": "EXITED_ZERO",
    }
    ticks = [10 + 0.2 * tick for tick in range(20)]
    report: dict[str, Any] = {"kind": "report", **final, "sequence": 0, "at": 14.0, "worker": "w"}
    facts: list[Fact] = [
        {"kind": "run", **_ABOUT, "faults": [{"kind": "worker.kill"}]},
        _sample(threads=20),
        {"kind": "submitted", "experiment": _NAME, "flavour": "succeeds", "ends": ["SUCCEEDED:EXITED_ZERO"]},
        {"kind": "fault", "phase": "hit", "fault": "worker.kill"},
        {"kind": "container", **final, "node": "node-1", "began": 10.0, "ticks": ticks},
        report,
        {"kind": "marker_put", "experiment": _NAME, "node": "node-1", "status": 200},
        {"kind": "marker", **final, "exit_code": 0},
        {"kind": "record", **final, "history": []},
        {"kind": "outputs", "experiment": _NAME, "problems": [], "result": {"token": 7}},
        {"kind": "objects", "experiment": _NAME, "keys": [f"experiments/{_NAME}/RESULT"]},
        {"kind": "end", "is_converged": True, "unfinished": [], "allowed_seconds": 100.0},
        {"kind": "queue", "queue": "q", "messages": 0, "is_dead_letters": False},
        {"kind": "drained", "node": "node-1", "code": 0, "is_last": True},
    ]
    kept = [fact for fact in (*facts, *more) if fact["kind"] != without]
    return [{"t": float(index), **fact} for index, fact in enumerate(kept)]


def _sample(*, threads: int, **fields: Any) -> Fact:
    return {"kind": "sample", "node": "node-1", "pid": 1, "files": 50, "threads": threads, "is_idle": True, **fields}


def _container(token: int, *, first: float) -> Fact:
    return {
        "kind": "container", "experiment": _NAME, "token": token, "attempt": 2, "node": "node-2", "began": first,
        "ticks": [first, first + 0.2, first + 0.4],
    }  # fmt: skip


def test_a_history_in_which_all_went_well_is_green() -> None:
    assert judge(_facts()) == []
    assert not is_void(_facts())


_WRONG: dict[str, tuple[str, list[Fact]]] = {
    "it has no end": ("I1", _facts(without="end")),
    "two containers at once": ("I2", _facts(_container(8, first=12.0))),
    "a lease is left": ("I5", _facts({"kind": "residue", "what": "lease", "item": _NAME})),
    "a message is left": ("I6", _facts({"kind": "queue", "queue": "q", "messages": 1, "is_dead_letters": False})),
    "a token is not newer": ("I8", _facts(_container(6, first=20.0))),
    "two markers": ("I10", _facts({"kind": "marker_put", "experiment": _NAME, "node": "node-2", "status": 200})),
    "threads of an idle worker": ("I13", _facts(_sample(threads=60))),
    "a worker died": ("I14", _facts({"kind": "worker", "node": "node-1", "event": "died", "code": 1})),
    "a worker had to be killed": ("I14", _facts({"kind": "drained", "node": "n", "code": None, "is_last": True})),
}


@pytest.mark.parametrize(("invariant", "facts"), _WRONG.values(), ids=_WRONG)
def test_what_must_not_be_is_called_by_its_name(invariant: str, facts: list[Fact]) -> None:
    assert invariant in {violation.invariant for violation in judge(facts)}


def test_a_run_whose_faults_hit_nothing_is_void() -> None:
    assert is_void(_facts(without="fault"))


def test_every_protection_has_a_trial() -> None:
    assert set(TRIALS) == set(Protection) - {Protection.TRUE_TIME}


def test_a_protection_is_missed_only_when_it_is_green_with_it_and_red_for_its_reason_without_it() -> None:
    nothing: frozenset[str] = frozenset()
    good = Row(name="guard", on=nothing, off=frozenset({"I2"}), evidence="I2 exp_1: two attempts lived at once")
    rows = [
        good,
        Row(name="guard", on=nothing, off=nothing),
        Row(name="guard", on=frozenset({"I2"}), off=frozenset({"I2"})),
        Row(name="guard", on=nothing, off=frozenset({"I13"})),
    ]
    assert [row.is_as_demanded for row in rows] == [True, False, False, False]
    assert make_rows([good])[1].split()[:3] == ["guard", "green", "I2"]
