"""Every error says what happened and what to do, has a code, and survives a process boundary."""

import copy
import inspect
import pickle

import pytest

from jobqueue import errors
from jobqueue.errors import ExperimentFailed, InvalidSpec, JobqueueError, Problem, Unavailable, Untrusted

KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, JobqueueError)
]  # fmt: skip


def make(kind: type[JobqueueError]) -> JobqueueError:
    if issubclass(kind, InvalidSpec):
        return kind([Problem(path="cpus", message="too many (ask for less)")])
    return kind("it happened", hint="do this")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clone", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_every_error_survives_pickling_with_all_it_carries(kind: type[JobqueueError], clone: object) -> None:
    error = make(kind)
    twin = clone(error)  # type: ignore[operator]
    assert type(twin) is kind
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_an_error_of_a_failed_experiment_keeps_its_numbers_over_a_process_boundary() -> None:
    error = ExperimentFailed("it failed", hint="h", reason="TIMED_OUT", exit_code=3, last_lines=("a", "b"))
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.reason, twin.exit_code, twin.last_lines) == ("TIMED_OUT", 3, ("a", "b"))
    assert str(twin) == "it failed (h)\n  | a\n  | b"


def test_codes_are_distinct() -> None:
    codes = [kind.code for kind in KINDS if kind is not Unavailable]
    assert len(set(codes)) == len(codes)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    drawn = (errors.__doc__ or "").split()
    assert [kind.__name__ for kind in KINDS if kind.__name__ not in drawn] == []


def test_a_hint_given_wins_over_that_of_the_kind_and_an_empty_one_is_not_shown() -> None:
    assert str(errors.NoSuchQueue("gone")) == "gone (`jobqueue queues create NAME` makes it)"
    assert str(errors.NoSuchQueue("gone", hint="look there")) == "gone (look there)"
    assert str(errors.NoSuchQueue("gone", hint="")) == "gone"


def test_all_wrong_fields_are_shown_at_once() -> None:
    error = InvalidSpec([Problem(path="a", message="wrong"), Problem(path="", message="too large")])
    assert str(error) == "2 wrong fields in the experiment:\n  a: wrong\n  too large"
    assert str(InvalidSpec([Problem(path="a", message="wrong")])).startswith("1 wrong field in")


def test_a_refused_message_is_not_to_be_answered_unless_somebody_known_has_asked() -> None:
    assert Untrusted("x").experiment_id == ""
    assert Untrusted("x", experiment_id="exp-1").experiment_id == "exp-1"


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InvalidSpec, ValueError),
        (errors.BrokerUnavailable, ConnectionError),
        (errors.NotFound, LookupError),
        (errors.ExperimentTimeout, TimeoutError),
    ],
)
def test_who_expects_pythons_own_error_catches_ours(kind: type[JobqueueError], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)
