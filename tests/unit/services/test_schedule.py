"""The order of the tests: every one once, what takes long first, and evenly."""

import pytest
from services import schedule
from services.schedule import deal


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "SECONDS", {"a.py": 100, "b.py": 90, "c.py": 20, "x.py": 60, "y.py": 50})
    monkeypatch.setattr(schedule, "CROWDED", frozenset({"x.py", "y.py"}))


def make(*modules: str, each: int) -> list[str]:
    return [f"{module}::{number}" for module in modules for number in range(each)]


def module_of(test: str) -> str:
    return test.partition("::")[0]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_every_test_runs_once_whatever_the_number_of_processes(processes: int) -> None:
    tests = make("a.py", "unit/u.py", "b.py", "x.py", "unit/v.py", each=7)
    assert sorted(deal(tests, processes, module_of=module_of)) == sorted(tests)


def test_each_process_begins_with_about_as_much_of_what_takes_long_and_ends_with_what_is_short() -> None:
    tests = make("unit/u.py", "a.py", "unit/v.py", "b.py", "c.py", "unit/w.py", "x.py", "y.py", each=6)
    dealt = deal(tests, 3, module_of=module_of)
    hands = [[module_of(test) for test in dealt[start : start + 16]] for start in (0, 16, 32)]
    assert [list(dict.fromkeys(hand))[:2] for hand in hands] == [
        ["x.py", "y.py"],
        ["a.py", "unit/u.py"],
        ["b.py", "c.py"],
    ]
    assert all(hand[-1] in {"unit/u.py", "unit/v.py", "unit/w.py"} for hand in hands)


def test_what_nobody_has_measured_comes_before_what_is_quick() -> None:
    tests = make("unit/u.py", "new.py", "x.py", each=2)
    assert [module_of(test) for test in deal(tests, 1, module_of=module_of)][2:4] == ["new.py", "new.py"]


def test_the_tests_of_a_module_keep_their_order() -> None:
    tests = ["a.py::2", "unit/u.py::9", "a.py::0", "unit/u.py::1"]
    assert deal(tests, 2, module_of=module_of) == ["a.py::2", "a.py::0", "unit/u.py::9", "unit/u.py::1"]


def test_more_long_tests_than_a_process_is_given_at_first_go_on_at_the_next_one() -> None:
    tests = [*make("x.py", "y.py", each=4), "unit/u.py::0"]
    assert deal(tests, 3, module_of=module_of) == tests
