"""The judge of the fault suite: what it must see in a history, and what it must not mistake for a fault."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.checker import is_void, judge
from faults.flavours import make_orders
from faults.history import Fact, load_history
from faults.plan import KINDS, make_plan
from faults.table import make_table

NAME = "exp-1"
FIRST, SECOND = 1000, 2000


def ticks(begin: float, end: float) -> list[float]:
    return [round(begin + 0.2 * number, 2) for number in range(int((end - begin) / 0.2) + 1)]


def container(token: int, begin: float, end: float, *, attempt: int = 1, node: str = "node-1") -> Fact:
    return {
        "kind": "container", "container": f"c{token}", "experiment": NAME, "attempt": attempt, "token": token,
        "node": node, "began": begin, "ticks": ticks(begin, end), "said": ["begin", "end"],
    }  # fmt: skip


def report(token: int, sequence: int, at: float, *, state: str | None = None, reason: str | None = None) -> Fact:
    return {
        "kind": "report", "experiment": NAME, "attempt": 1, "token": token, "sequence": sequence, "worker": "w",
        "at": at, "t": at, "state": state, "reason": reason,
    }  # fmt: skip


def good() -> list[Fact]:
    """Return the history of an experiment that was lost with its worker once, and succeeded."""
    return [
        {
            "kind": "run", "t": 0.0, "seed": 1, "broker": "rabbitmq", "store": "s3", "platform_budget": 5,
            "recovery_limit_seconds": 60, "faults": [{"kind": "node.kill"}], "cores": 2, "nodes": ["node-1", "node-2"],
        },
        {"kind": "submitted", "experiment": NAME, "flavour": "succeeds", "ends": ["SUCCEEDED:EXITED_ZERO"]},
        {"kind": "fault", "t": 12.0, "index": 0, "fault": "node.kill", "phase": "hit", "experiments": [NAME]},
        {"kind": "duplicate", "experiment": NAME, "was_live": True},
        report(FIRST, 0, 10.0, state="PREPARING"),
        report(FIRST, 1, 10.5, state="RUNNING"),
        report(SECOND, 0, 20.0, state="PREPARING"),
        report(SECOND, 1, 20.5, state="RUNNING"),
        report(SECOND, 1, 20.5, state="RUNNING"),
        report(SECOND, 2, 24.5, state="SUCCEEDED", reason="EXITED_ZERO"),
        {"kind": "marker_put", "experiment": NAME, "node": "node-2", "status": 200, "t": 24.4},
        {"kind": "marker_put", "experiment": NAME, "node": "node-1", "status": 412, "t": 25.0},
        {"kind": "sample", "t": 1.0, "node": "node-1", "pid": 7, "files": 40, "threads": 12, "is_idle": True},
        {"kind": "sample", "t": 30.0, "node": "node-1", "pid": 7, "files": 44, "threads": 13, "is_idle": True},
        {"kind": "worker", "node": "node-1", "event": "killed"},
        {"kind": "end", "t": 30.0, "is_converged": True, "unfinished": [], "allowed_seconds": 100},
        container(FIRST, 10.5, 12.0),
        container(SECOND, 20.5, 24.0, attempt=2, node="node-2"),
        {
            "kind": "objects", "experiment": NAME,
            "keys": [f"experiments/{NAME}/RESULT", f"experiments/{NAME}/attempts/2-{SECOND}/outputs/result.json"],
        },
        {
            "kind": "marker", "experiment": NAME, "attempt": 2, "token": SECOND, "state": "SUCCEEDED",
            "reason": "EXITED_ZERO", "exit_code": 0,
        },
        {"kind": "outputs", "experiment": NAME, "problems": [], "result": {"token": SECOND, "attempt": 2}},
        {
            "kind": "record", "experiment": NAME, "state": "SUCCEEDED", "reason": "EXITED_ZERO", "attempt": 2,
            "token": SECOND, "worker": None, "history": [{"token": FIRST, "reason": "WORKER_LOST"}],
        },
        {"kind": "drained", "node": "node-1", "code": 0, "is_last": True},
        {"kind": "malformed", "messages": 4},
        {"kind": "queue", "queue": "faults_cpu", "messages": 0, "is_dead_letters": False},
        {"kind": "queue", "queue": "faults_cpu_dead", "messages": 4, "is_dead_letters": True},
    ]  # fmt: skip


def change(kind: str, number: int = 0, **fields: Any) -> Callable[[list[Fact]], object]:
    """Return what changes the fact of a kind."""
    return lambda facts: [fact for fact in facts if fact["kind"] == kind][number].update(fields)


def drop(kind: str) -> Callable[[list[Fact]], object]:
    """Return what takes the facts of a kind away."""

    def apply(facts: list[Fact]) -> None:
        facts[:] = [fact for fact in facts if fact["kind"] != kind]

    return apply


def add(*more: Fact) -> Callable[[list[Fact]], object]:
    """Return what adds facts."""
    return lambda facts: facts.extend(more)


def never_ended(facts: list[Fact]) -> None:
    for kind in ("marker", "outputs", "marker_put"):
        drop(kind)(facts)
    change("record", state="RUNNING", reason=None)(facts)
    facts[:] = [fact for fact in facts if fact.get("sequence") != 2]


BAD = {
    "never final": ("I1", never_ended),
    "registry and marker differ": ("I1", change("record", state="FAILED", reason="EXITED_NONZERO")),
    "an end that it must not have": (
        "I1",
        lambda facts: [
            change(kind, state="FAILED", reason="OUT_OF_MEMORY")(facts) for kind in ("marker", "record")
        ] + [change("report", -1, state="FAILED", reason="OUT_OF_MEMORY")(facts)],
    ),
    "final without a marker": ("I1", drop("marker")),
    "not over by the deadline": ("I1", change("end", is_converged=False, unfinished=[NAME])),
    "no end at all": ("I1", drop("end")),
    "two live attempts": ("I2", change("container", 0, ticks=ticks(10.5, 21.0))),
    "a frozen one that goes on beside it": ("I2", change("container", 0, ticks=ticks(10.5, 12) + ticks(22, 23))),
    "an object outside of the attempts": ("I3", change("objects", keys=[f"experiments/{NAME}/outputs/x"])),
    "outputs of another digest": ("I3", change("outputs", problems=["model.pt has another digest"])),
    "outputs of another attempt": ("I3", change("outputs", result={"token": FIRST})),
    "a success that failed": ("I4", change("marker", exit_code=1)),
    "a success without its output": ("I4", change("outputs", result=None)),
    "a container that was left": ("I5", add({"kind": "residue", "what": "container", "item": "c1 running"})),
    "a lease that was left": ("I5", add({"kind": "residue", "what": "lease", "item": NAME})),
    "a message that was left": ("I6", change("queue", messages=1)),
    "a dead letter that was lost": ("I6", change("queue", 1, messages=3)),
    "a gap in the reports": ("I7", change("report", 2, sequence=3)),
    "reports whose times go back": ("I7", change("report", 1, at=9.0)),
    "an end that nobody reported": ("I7", change("report", 5, state=None)),
    "an older token that goes on reporting": ("I7", add(report(FIRST, 2, 24.0, state="RUNNING"))),
    "a token that goes back": ("I8", change("container", 0, token=SECOND + 1)),
    "more attempts than are paid for": (
        "I9",
        add(*(container(FIRST + number, 12.0 + number, 12.4 + number) for number in range(1, 6))),
    ),
    "a marker written twice": ("I10", change("marker_put", 1, status=200)),
    "a recovery that took too long": ("I12", change("run", recovery_limit_seconds=5)),
    "files that are not closed": ("I13", change("sample", 1, files=400)),
    "threads that do not end": ("I13", change("sample", 1, threads=60)),
    "an attempt that nobody explains": ("I14", change("record", history=[])),
    "a worker that ended by itself": ("I14", change("worker", event="died", code=1)),
    "a worker that had to be killed": ("I14", change("drained", code=None)),
}  # fmt: skip


def test_a_good_history_is_not_accused() -> None:
    assert judge(good()) == []
    assert not is_void(good())


@pytest.mark.parametrize(("invariant", "spoil"), BAD.values(), ids=BAD)
def test_a_broken_invariant_is_named(invariant: str, spoil: Callable[[list[Fact]], object]) -> None:
    facts = good()
    spoil(facts)
    found = judge(facts)
    assert invariant in {violation.invariant for violation in found}, found
    assert f"{invariant} " in make_table(facts, found)


def test_every_invariant_that_can_be_seen_from_outside_has_a_bad_history() -> None:
    # I11 is about devices, which this site has none of.
    assert {invariant for invariant, _spoil in BAD.values()} == {f"I{number}" for number in range(1, 15)} - {"I11"}


def test_giving_up_after_attempts_is_an_end_that_any_experiment_may_have() -> None:
    facts = good()
    end: dict[str, Any] = {"state": "FAILED", "reason": "ATTEMPTS_EXHAUSTED"}
    for kind in ("marker", "record"):
        change(kind, **end)(facts)
    change("report", -1, **end)(facts)
    change("queue", 1, messages=5)(facts)
    assert judge(facts) == []


def test_what_is_silent_for_a_while_did_not_live_in_between() -> None:
    facts = good()
    change("container", 0, ticks=ticks(10.5, 12.0) + ticks(25.0, 26.0))(facts)
    assert [violation.invariant for violation in judge(facts)] == []


def test_a_wiped_registry_and_a_lost_broker_excuse_only_what_went_with_them() -> None:
    facts = good()
    drop("record")(facts)
    change("fault", fault="registry.wipe", t=15.0)(facts)
    assert judge(facts) == []
    facts = [fact for fact in good() if (fact.get("token"), fact.get("sequence")) != (SECOND, 1)]
    assert [violation.invariant for violation in judge(facts)] == ["I7"]
    change("fault", fault="broker.wipe")(facts)
    assert judge(facts) == []


def test_a_worker_that_was_stopped_may_say_one_more_thing_when_it_goes_on() -> None:
    facts = good()
    late = {**report(FIRST, 2, 24.0, state="RUNNING"), "worker": "node-1@site"}
    add(late)(facts)
    assert [violation.invariant for violation in judge(facts)] == ["I7"]
    stop = {"kind": "fault", "index": 1, "fault": "worker.stop", "node": "node-2"}
    add({**stop, "t": 15.0, "phase": "hit"}, {**stop, "t": 23.8, "phase": "over"})(facts)
    assert [violation.invariant for violation in judge(facts)] == ["I7"]
    change("fault", 1, node="node-1")(facts)
    change("fault", 2, node="node-1")(facts)
    assert judge(facts) == []
    late.update(at=27.0, t=27.0)
    assert [violation.invariant for violation in judge(facts)] == ["I7"]


def test_a_container_that_is_made_late_keeps_the_token_of_when_its_attempt_began() -> None:
    facts = good()
    change("container", 0, began=21.0, ticks=[])(facts)
    assert judge(facts) == []


def test_a_run_whose_faults_hit_nothing_proves_nothing() -> None:
    facts = good()
    change("fault", phase="missed")(facts)
    assert is_void(facts)


def test_a_long_run_in_which_a_node_ran_nothing_proves_nothing() -> None:
    facts = good()
    for number in range(20):
        add({"kind": "submitted", "experiment": f"exp-{number}", "flavour": "succeeds", "ends": []})(facts)
    assert not is_void(facts)
    change("run", nodes=["node-1", "node-2", "node-3"])(facts)
    assert not is_void(facts)
    for number in range(20, 40):
        add({"kind": "submitted", "experiment": f"exp-{number}", "flavour": "succeeds", "ends": []})(facts)
    assert is_void(facts)


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in good()))
    assert load_history(path) == good()


def test_the_same_seed_is_the_same_plan_and_another_one_is_not() -> None:
    def plan(seed: int) -> list[Any]:
        return make_plan(40, seed=seed, broker="rabbitmq", lease_seconds=6)

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)
    assert make_orders(40, seed=1) == make_orders(40, seed=1)


def test_a_run_empties_the_broker_or_the_registry_but_never_both() -> None:
    emptied = []
    for seed in range(20):
        names = {fault.kind.name for fault in make_plan(60, seed=seed, broker="redis", lease_seconds=6)}
        emptied.append(("registry.wipe" in names, "broker.wipe" in names))
        assert names | {"registry.wipe", "broker.wipe", "queue.delete"} == {
            kind.name for kind in KINDS if "redis" in (kind.brokers or ("redis",))
        }
    assert set(emptied) == {(True, False), (False, True)}


def test_half_of_the_containers_outlive_a_lease() -> None:
    orders = make_orders(40, seed=3)
    assert sum(1 for order in orders if order.seconds >= 9) == 20
