"""The table of outcomes whole: which test walks each row, on every broker, and that none is missing."""

import ast
from pathlib import Path

import pytest

from jobqueue.lifecycle import Reason

HERE = Path(__file__).parent
WALKED = "test_outcomes.py::test_row"

# What happened, the reason that it leads to, and the test: a row that is walked here, or one that covers it already.
TABLE: dict[str, tuple[str, str]] = {
    "exit code 0": ("EXITED_ZERO", WALKED),
    "exit code 3": ("EXITED_NONZERO", WALKED),
    "exit code 3, and a retry": ("EXITED_NONZERO", WALKED),
    "killed by its memory limit": ("OUT_OF_MEMORY", WALKED),
    "the memory of a GPU exhausted": ("GPU_OUT_OF_MEMORY", WALKED),
    "longer than its timeout": ("TIMED_OUT", WALKED),
    "silent for its stall_timeout": ("STALLED", WALKED),
    "over the limit of its log": ("LIMIT_EXCEEDED", WALKED),
    "over its limit of processes": ("", "test_experiments.py::test_a_fork_bomb_is_contained"),
    "expired before a start": ("EXPIRED", WALKED),
    "an image that the node denies": ("IMAGE_REFUSED", WALKED),
    "an image that is nowhere": ("IMAGE_REFUSED", "test_outcomes_engine.py::test_an_image_that_is_nowhere_is_refused"),
    "an image that cannot be fetched": (
        "IMAGE_PULL_FAILED",
        "test_outcomes_engine.py::test_an_image_that_cannot_be_fetched_now_is_tried_again",
    ),
    "an input that is missing": ("INPUT_INVALID", WALKED),
    "an input that has changed": ("INPUT_INVALID", WALKED),
    "the store away at its start": ("STORE_UNAVAILABLE", WALKED),
    "the store away at its end": ("EXITED_ZERO", WALKED),
    "what runs containers failed": ("RUNTIME_FAILURE", WALKED),
    "the engine away": ("RUNTIME_FAILURE", "test_outcomes_engine.py::test_an_engine_that_is_away_is_waited_for"),
    "the node's disk full": ("NODE_DISK_FULL", WALKED),
    "a device lost": (  # nothing leads to it yet
        "DEVICE_FAILURE",
        "../unit/jobqueue/test_lifecycle.py::test_each_reason_leads_to_what_the_table_says",
    ),
    "its worker killed": (
        "WORKER_LOST",
        "test_worker_ends.py::test_what_a_killed_worker_left_is_run_by_another_one_after_the_lease",
    ),
    "its lease superseded": ("SUPERSEDED", WALKED),
    "its worker drained": (
        "DRAINED",
        "test_worker_ends.py::test_a_drained_worker_hands_back_what_is_not_over_and_no_attempt_is_spent",
    ),
    "cancelled by a user": ("CANCELLED_BY_USER", WALKED),
    "revoked": (
        "CANCELLED_BY_USER",
        "test_revoke.py::test_what_runs_and_what_waits_behind_it_are_cancelled_with_and_without_terminate",
    ),
    "its queue deleted": ("QUEUE_DELETED", WALKED),
    "its queue deleted, and somebody listens": (
        "QUEUE_DELETED",
        "test_queues_end.py::test_what_runs_ends_although_nobody_told_the_registry",
    ),
    "more than any slot here has": ("DOES_NOT_FIT", WALKED),
    "the platform's attempts used up": ("ATTEMPTS_EXHAUSTED", WALKED),
    "not an envelope": ("BAD_ENVELOPE", WALKED),
    "malformed in any other way": (
        "BAD_ENVELOPE",
        "test_poison.py::test_no_malformed_message_ends_the_worker_or_is_lost",
    ),
    "of an unknown sender": ("UNTRUSTED", WALKED),
    "sealed to another node": ("UNDECRYPTABLE", WALKED),
    "a spec that is not the header's": ("BAD_SPEC", WALKED),
    "an idempotency key of another spec": ("", WALKED),
    "the registry wiped": ("", WALKED),
    "the registry's clock stepped": ("", "test_registry_redis_time.py::test_a_step_of_the_clock_ends_no_lease"),
    "what wraps the task failed": (
        "",
        "test_worker_ends.py::test_an_error_that_would_end_any_worker_hands_the_message_back",
    ),
    "a copy of what is held elsewhere": ("", WALKED),
    "a copy of what runs here": (
        "",
        "test_experiments.py::test_a_second_copy_of_a_running_or_finished_experiment_starts_nothing",
    ),
    "a copy of what is over": ("", WALKED),
    "another message under a known id": ("", WALKED),
}


def test_every_reason_has_a_row() -> None:
    assert {reason for reason, _test in TABLE.values() if reason} == set(Reason.__members__)


def test_each_row_that_is_to_be_walked_is_and_no_other() -> None:
    calls = [node for node in ast.walk(parsed("test_outcomes.py")) if isinstance(node, ast.Call)]
    walked = [
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "row" and isinstance(call.args[0], ast.Constant)
    ]
    assert sorted(map(str, walked)) == sorted(what for what, (_reason, test) in TABLE.items() if test == WALKED)


@pytest.mark.parametrize("test", sorted({test for _reason, test in TABLE.values()}))
def test_each_named_test_is_there(test: str) -> None:
    file, _colons, name = test.partition("::")
    assert name in {node.name for node in parsed(file).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("file", ["conftest.py", "test_worker_ends.py", "test_experiments.py", "test_poison.py"])
def test_the_files_of_these_tests_go_over_every_broker(file: str) -> None:
    words = {node.value for node in ast.walk(parsed(file)) if isinstance(node, ast.Constant)}
    assert words >= {"rabbitmq", "redis", "sqs"}


def parsed(file: str) -> ast.Module:
    return ast.parse((HERE / file).read_text())
