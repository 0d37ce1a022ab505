"""One delivery of one experiment: every answer of the registry, every way to end, and what becomes of the message."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import stamina
from services.node import FakeNode
from services.waiting import wait_until

from jobqueue.envelope import Opened, Verified
from jobqueue.errors import (
    ArtifactRefused,
    ImagePullFailed,
    ImageRefused,
    InvalidSpec,
    JobqueueError,
    Problem,
    RegistryUnavailable,
    RuntimeFailure,
    StoreUnavailable,
)
from jobqueue.ids import NodeId, WorkerId, make_experiment_id
from jobqueue.keys import KeyRing, ensure_laptop_keys
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry.base import Granted, Lease, Quarantined
from jobqueue.report import TaskState
from jobqueue.resources import Resources
from jobqueue.storage.markers import read_marker
from workers.attempt import logs, workspace
from workers.attempt.lease import clock_seconds
from workers.attempt.lease_files import KeptLease, LeaseFile, forget, read_boot_id, read_leases
from workers.attempt.leftovers import tidy
from workers.attempt.planning import PROGRESS_FILE
from workers.attempt.runtimes.base import Exit, Labels, Plan
from workers.attempt.runtimes.fake import FakeContainer, Script
from workers.attempt.supervise import Attempt, Ended, PutOff

HELD = Script(is_held=True)
PLAN = Plan(
    labels=Labels(experiment_id="", attempt=1, token=1, node_id=""),
    image="any:1",
    command=("true",),
    env={},
    workspace=Path("/nowhere"),
    inputs={},
    resources=Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1),
)


def hold_elsewhere(node: FakeNode, message: Verified, *, ttl: timedelta = timedelta(seconds=60)) -> Granted:
    """Let another worker have the lease."""
    answer = node.registry.leases.acquire(
        node.register(message),
        worker_id=WorkerId("cpu@other"),
        node_id=NodeId("other"),
        ttl=ttl,
        platform_budget=node.site.policy.platform_budget,
    )
    assert isinstance(answer, Granted)
    return answer


def failing(error: Exception, method: str, part: str) -> Callable[[str, str], None]:
    """Return a fault for some calls of the store."""

    def fault(called: str, key: str) -> None:
        if called == method and part in key:
            raise error

    return fault


def unavailable(*_: Any, **__: Any) -> Any:
    raise RegistryUnavailable("silent")


# Every answer of acquire


def test_a_granted_lease_runs_the_experiment_to_its_end(node: FakeNode) -> None:
    message = node.message()
    node.runtime.script = Script(output=[("stdout", b"hello\n"), ("stderr", b"oops\n")])
    node.register(message)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason, result.is_dead_letter) == (
        State.SUCCEEDED,
        Reason.EXITED_ZERO,
        False,
    )
    record, marker = node.record(message), node.marker(message)
    assert marker is not None
    assert (record.state, record.attempt, record.exit_code) == (State.SUCCEEDED, 1, 0)
    assert (marker.state, marker.attempt, marker.token) == (State.SUCCEEDED, 1, record.token)
    assert marker.manifest in node.stored()
    assert (node.output(message), node.output(message, "stderr")) == (b"hello\n", b"oops\n")


def test_an_attempt_whose_folder_cannot_be_removed_is_not_forgotten_and_has_no_share_of_the_machine(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = node.message()
    node.register(message)
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "remove", lambda _: False)
        assert isinstance(Attempt(node.site, message).run(), Ended)
    (kept,) = read_leases(node.site.leases).values()
    assert (kept.experiment_id, kept.entry) == (message.header.experiment_id, None)
    tidy(LeaseFile(node.site.leases, kept), site=node.site)
    assert not read_leases(node.site.leases)


def test_who_meets_a_held_lease_starts_nothing_and_looks_again_when_it_ends(node: FakeNode) -> None:
    message = node.message()
    hold_elsewhere(node, message)
    result = node.run(message)
    assert isinstance(result, PutOff)
    assert timedelta(seconds=55) < result.delay <= timedelta(seconds=60)
    assert result.sentence == "another attempt holds the lease"
    assert node.runtime.containers == []
    assert node.record(message).attempt == 1


def test_a_quarantined_registry_puts_the_delivery_off(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    remaining = timedelta(seconds=7)
    monkeypatch.setattr(node.registry.leases, "acquire", lambda *_, **__: Quarantined(remaining=remaining))
    result = node.run(node.message())
    assert isinstance(result, PutOff)
    assert (result.delay, result.sentence) == (remaining, "the registry may have forgotten who holds the lease")
    assert node.runtime.containers == []


def test_a_message_of_a_finished_experiment_starts_nothing_and_its_end_is_told_once_more(node: FakeNode) -> None:
    message = node.message()
    node.runtime.script = Script(exit=Exit(code=3))
    node.run(message)
    marker = node.marker(message)
    assert marker is not None
    node.reports()
    for _ in range(2):
        result = node.run(message)
        assert isinstance(result, Ended)
        assert (result.state, result.outcome.reason) == (State.FAILED, Reason.EXITED_NONZERO)
    assert len(node.runtime.containers) == 1
    # Whoever reported it may have died before; who hears it again knows it by its token and sequence.
    assert [
        (report.token, report.sequence, report.state, report.exit_code, report.manifest) for report in node.reports()
    ] == [(0, 0, State.FAILED, 3, marker.manifest)] * 2


@pytest.mark.parametrize("method", ["size", "get"])
def test_an_end_is_told_once_more_without_its_manifest_while_the_store_is_away(node: FakeNode, method: str) -> None:
    message = node.message()
    node.run(message)
    node.reports()
    node.store.fault = failing(StoreUnavailable("503"), method, "RESULT")
    assert isinstance(node.run(message), Ended)
    assert [(report.state, report.manifest) for report in node.reports()] == [(State.SUCCEEDED, "")]


def test_what_was_cancelled_between_two_attempts_is_reported_by_who_meets_its_message(node: FakeNode) -> None:
    message = node.message(retries=1)
    node.runtime.script = Script(exit=Exit(code=3))
    assert isinstance(node.run(message), PutOff)
    node.reports()
    node.registry.experiments.cancel(message.header.experiment_id)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason) == (State.CANCELLED, Reason.CANCELLED_BY_USER)
    assert [(report.state, report.reason) for report in node.reports()] == [(State.CANCELLED, Reason.CANCELLED_BY_USER)]


def test_what_was_cancelled_before_anybody_held_it_is_reported_by_who_meets_its_message(node: FakeNode) -> None:
    message = node.message()
    node.register(message)
    node.registry.experiments.cancel(message.header.experiment_id)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason) == (State.CANCELLED, Reason.CANCELLED_BY_USER)
    assert [(report.state, report.reason, report.attempt) for report in node.reports()] == [
        (State.CANCELLED, Reason.CANCELLED_BY_USER, 0)
    ]
    assert node.runtime.containers == []


@pytest.mark.parametrize("attempts", [0, 1])
def test_what_was_cancelled_while_nobody_held_it_is_never_run_by_a_registry_that_forgot_it(
    node: FakeNode, attempts: int
) -> None:
    message = node.message(retries=1)
    node.register(message)
    node.runtime.script = Script(exit=Exit(code=3))
    for _ in range(attempts):
        assert isinstance(node.run(message), PutOff)
    node.registry.experiments.cancel(message.header.experiment_id)
    node.reports()
    node.store.fault = failing(StoreUnavailable("503"), "put_if_absent", "RESULT")
    put_off = node.run(message)
    assert isinstance(put_off, PutOff), "its message has gone, and no store knows of the end"
    assert "503" in put_off.sentence
    assert node.reports() == []
    node.store.fault = lambda *_: None
    assert isinstance(node.run(message), Ended)
    marker = node.marker(message)
    assert marker is not None
    assert (marker.state, marker.reason, marker.attempt) == (State.CANCELLED, Reason.CANCELLED_BY_USER, attempts)
    node.registry.forget()
    while isinstance(result := node.run(message), PutOff):
        node.clock.ahead += result.delay
    assert (result.state, result.outcome.reason) == (State.CANCELLED, Reason.CANCELLED_BY_USER)
    assert len(node.runtime.containers) == attempts


def test_a_tombstone_that_a_lost_worker_did_not_see_is_committed_by_the_next(node: FakeNode) -> None:
    message = node.message()
    hold_elsewhere(node, message, ttl=timedelta(seconds=5))
    node.registry.experiments.cancel(message.header.experiment_id)
    node.clock.ahead = timedelta(seconds=10)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, node.record(message).state) == (State.CANCELLED, State.CANCELLED)
    marker = node.marker(message)
    assert marker is not None
    assert marker.reason is Reason.CANCELLED_BY_USER
    assert node.runtime.containers == []


def test_a_spent_platform_budget_ends_it_and_sets_its_message_aside(node: FakeNode) -> None:
    message = node.message()
    for _ in range(node.site.policy.platform_budget):
        hold_elsewhere(node, message, ttl=timedelta(seconds=5))
        node.clock.ahead += timedelta(seconds=10)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason, result.is_dead_letter) == (
        State.FAILED,
        Reason.ATTEMPTS_EXHAUSTED,
        True,
    )
    assert result.outcome.detail == "WORKER_LOST, WORKER_LOST, WORKER_LOST"
    assert node.record(message).reason is Reason.ATTEMPTS_EXHAUSTED
    assert node.runtime.containers == []


def test_a_registry_that_does_not_answer_is_said_and_nothing_is_done(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.registry.leases, "acquire", unavailable)
    with pytest.raises(RegistryUnavailable):
        node.run(node.message())
    assert (node.runtime.containers, node.store.calls) == ([], [])


def test_an_experiment_that_the_registry_has_forgotten_is_run_from_its_message(node: FakeNode) -> None:
    message = node.message()
    assert isinstance(node.run(message), Ended)
    assert node.record(message).state is State.SUCCEEDED


# Exits and their reasons


@pytest.mark.parametrize(
    ("ended", "fields", "reason", "state"),
    [
        (Exit(code=0), {}, Reason.EXITED_ZERO, State.SUCCEEDED),
        (Exit(code=3), {}, Reason.EXITED_NONZERO, State.FAILED),
        (Exit(code=127, error="no such file"), {}, Reason.EXITED_NONZERO, State.FAILED),
        (Exit(code=137, is_out_of_memory=True), {}, Reason.OUT_OF_MEMORY, State.FAILED),
        (Exit(code=1, is_out_of_memory=True), {}, Reason.OUT_OF_MEMORY, State.FAILED),
        (Exit(code=0, is_out_of_memory=True), {}, Reason.EXITED_ZERO, State.SUCCEEDED),
        (Exit(code=143), {}, Reason.EXITED_NONZERO, State.FAILED),
    ],
)
def test_the_reason_is_read_from_how_the_container_ended(
    node: FakeNode, ended: Exit, fields: dict[str, Any], reason: Reason, state: State
) -> None:
    message = node.message(**fields)
    node.runtime.script = Script(output=[("stdout", b"one\ntwo\n")], exit=ended)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason, result.outcome.exit_code) == (state, reason, ended.code)
    assert result.outcome.last_lines == ("one", "two")
    assert node.record(message).last_lines == ("one", "two")


def test_a_container_that_was_killed_from_outside_is_the_platforms_fault(node: FakeNode) -> None:
    message = node.message()
    node.runtime.script = Script(exit=Exit(code=137, is_from_outside=True))
    result = node.run(message)
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert result.outcome.reason is Reason.RUNTIME_FAILURE
    assert node.record(message).platform_failures == 1


def test_users_retries_are_spent_one_by_one_and_the_last_failure_stands(node: FakeNode) -> None:
    message = node.message(retries=1)
    node.runtime.script = Script(exit=Exit(code=3))
    first = node.run(message)
    assert isinstance(first, PutOff)
    assert timedelta(seconds=2.5) <= first.delay <= timedelta(seconds=5)
    assert node.record(message).state is State.QUEUED
    assert node.marker(message) is None
    node.clock.ahead += first.delay + timedelta(seconds=1)
    second = node.run(message)
    assert isinstance(second, Ended)
    assert (second.outcome.reason, node.record(message).attempt) == (Reason.EXITED_NONZERO, 2)
    finals = [report for report in node.reports() if report.reason]
    assert [(report.attempt, report.state) for report in finals] == [(1, State.QUEUED), (2, State.FAILED)]


def test_platform_faults_spend_the_platforms_budget_and_then_it_is_over(node: FakeNode) -> None:
    message = node.message()
    node.runtime.images["any:1"] = ImagePullFailed("the registry of images answers 503")
    for _ in range(node.site.policy.platform_budget - 1):
        result = node.run(message)
        assert isinstance(result, PutOff)
        node.clock.ahead += result.delay + timedelta(seconds=1)
    last = node.run(message)
    assert isinstance(last, Ended)
    assert (last.outcome.reason, last.is_dead_letter) == (Reason.ATTEMPTS_EXHAUSTED, True)
    assert last.outcome.detail == "IMAGE_PULL_FAILED, IMAGE_PULL_FAILED, IMAGE_PULL_FAILED"
    marker = node.marker(message)
    assert marker is not None
    assert marker.state is State.FAILED


# What is refused before anything starts


@pytest.mark.security_case("replayed after expiry")
def test_an_expired_experiment_is_not_started(node: FakeNode) -> None:
    """A message that nobody has acted on is kept back until it has expired, and sent then.

    Refused: the experiment ends as EXPIRED; nothing is started.
    Evidence: its end and its reason, and that there was no container.
    """
    expires_at = datetime.now(UTC) + timedelta(milliseconds=50)
    message = node.message(expires_at=expires_at)
    wait_until(lambda: datetime.now(UTC) > expires_at, what="its expiry")
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason) == (State.FAILED, Reason.EXPIRED)
    assert node.runtime.containers == []


def test_a_message_for_another_nodes_key_ends_and_is_set_aside(node: FakeNode, tmp_path: Any) -> None:
    ensure_laptop_keys(tmp_path / "others")
    others = KeyRing(tmp_path / "others")
    own = node.site.keys

    class Mixed:
        """Signs as a trusted sender, and seals to a node that is not this one."""

        recipient = staticmethod(others.recipient)
        sender = staticmethod(own.sender)
        own_reporting = staticmethod(own.own_reporting)

    result = node.run(node.message(keys=Mixed()))  # type: ignore[arg-type]
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason, result.is_dead_letter) == (
        State.FAILED,
        Reason.UNDECRYPTABLE,
        True,
    )


def test_a_spec_that_contradicts_its_header_is_the_users_fault(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    message = node.message(cpus=1)
    original = message.header

    class Other(type(original)):  # type: ignore[misc]
        """A header as an old client might have sealed it."""

    message = replace(message, header=Other(**{**vars(original), "project": "another"}))
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason) == (State.FAILED, Reason.BAD_SPEC)
    assert "project" in result.outcome.detail


def test_an_image_that_does_not_exist_ends_it_at_once(node: FakeNode) -> None:
    node.runtime.images["any:1"] = ImageRefused("there is no image any:1")
    result = node.run(node.message(retries=5))
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason) == (State.FAILED, Reason.IMAGE_REFUSED)


@pytest.mark.security_case("An end of any length")
@pytest.mark.parametrize(
    "error",
    [
        ImageRefused("no such image: " + "x" * 2**21),
        InvalidSpec([Problem(path=f"env.{number}", message="not a variable name") for number in range(36_000)]),
    ],
    ids=["image", "spec"],
)
def test_what_an_end_says_is_bounded_whoever_has_written_it(
    node: FakeNode, error: JobqueueError, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry of images answers with megabytes, or a spec of 256 KiB has 36,000 wrong fields, each told in a line.

    Refused: of what an end says some 2,000 bytes are kept, as in its report.
    Evidence: the outcome, the marker in the store, the registry's record, each line of the log.
    Red before: all of it got into each of them: 2.4 MB for one message, more than a clerk takes as a marker.
    """

    def open_sealed(*_: object, **__: object) -> Opened:
        raise error

    if isinstance(error, ImageRefused):
        node.runtime.images["any:1"] = error
    else:
        monkeypatch.setattr("workers.attempt.execute.open_sealed", open_sealed)
    message = node.message()
    result = node.run(message)
    assert isinstance(result, Ended)
    marker = read_marker(node.site.store, message.header.experiment_id)
    assert marker is not None
    for told in (result.outcome.detail, marker.detail, node.record(message).detail):
        assert told.startswith(error.message[:200])
        assert len(told.encode()) < 2100
    assert max(len(record.getMessage() + repr(vars(record))) for record in caplog.records) < 10_000


def test_what_does_not_fit_is_handed_back_and_costs_nothing(node: FakeNode) -> None:
    message = node.message(memory="100GiB")
    result = node.run(message)
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert result.outcome.reason is Reason.DOES_NOT_FIT
    record = node.record(message)
    assert (record.state, record.platform_failures, record.user_failures) == (State.QUEUED, 0, 0)


# While it runs


def test_it_is_stopped_when_its_time_is_over_and_its_outputs_so_far_are_kept(node: FakeNode) -> None:
    message = node.message(timeout="200ms")
    node.runtime.script = Script(is_held=True, last_words=b"bye\n")
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason) == (State.FAILED, Reason.TIMED_OUT)
    assert "200ms" in result.outcome.detail
    assert node.output(message) == b"bye\n"
    marker = node.marker(message)
    assert marker is not None
    assert marker.manifest in node.stored()
    assert node.runtime.containers[0].grace == node.site.grace


def test_it_is_stopped_when_it_is_silent_for_too_long(node: FakeNode) -> None:
    message = node.message(stall_timeout="200ms")
    node.runtime.script = HELD
    result = node.run(message)
    assert isinstance(result, Ended)
    assert result.outcome.reason is Reason.STALLED


def test_output_keeps_a_stall_away(node: FakeNode) -> None:
    message = node.message(stall_timeout="300ms")
    node.runtime.script = HELD
    running = node.start(message)
    container = node.container()
    until = time.monotonic() + 0.9
    while time.monotonic() < until:
        container.emit("stdout", b".")
        time.sleep(0.05)
    container.finish()
    result = running.join()
    assert isinstance(result, Ended)
    assert result.state is State.SUCCEEDED


def test_it_is_stopped_when_it_prints_more_than_is_allowed(node: FakeNode) -> None:
    message = node.message()
    node.runtime.script = Script(is_held=True, output=[("stdout", b"x" * 2**19)] * 3)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert result.outcome.reason is Reason.LIMIT_EXCEEDED
    assert len(node.output(message)) < 2**20 + 100


def test_it_is_stopped_when_the_store_refuses_its_output(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CHUNK_EVERY", timedelta(0))
    node.store.fault = failing(ArtifactRefused("its sender is trusted no more"), "put", "/logs/")
    node.runtime.script = HELD
    running = node.start(node.message(timeout="1h"))
    node.container().emit("stdout", b"one line")
    result = running.join()
    assert isinstance(result, Ended)
    assert result.outcome.reason is Reason.INPUT_INVALID
    assert "its sender is trusted no more" in result.outcome.sentence


def test_it_is_killed_at_once_when_its_workspace_is_over_its_disk(node: FakeNode) -> None:
    message = node.message(disk="1MiB")
    node.runtime.script = HELD
    running = node.start(message)
    container = node.container()
    (container.plan.workspace / "file").write_bytes(bytes(2 * 2**20))
    result = running.join()
    assert isinstance(result, Ended)
    assert result.outcome.reason is Reason.LIMIT_EXCEEDED
    assert "1 MiB in its workspace" in result.outcome.sentence
    assert container.grace == timedelta(0)


@pytest.mark.parametrize("ignores", [False, True])
def test_a_cancel_stops_what_runs(node: FakeNode, *, ignores: bool) -> None:
    message = node.message(retries=3)
    node.runtime.script = Script(is_held=True, ignores_terminate=ignores)
    running = node.start(message)
    node.container()
    node.registry.experiments.cancel(message.header.experiment_id)
    result = running.join()
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason) == (State.CANCELLED, Reason.CANCELLED_BY_USER)
    marker = node.marker(message)
    assert marker is not None
    assert marker.state is State.CANCELLED


def test_a_cancel_that_this_worker_is_told_of_does_not_wait_for_the_registry(node: FakeNode) -> None:
    message = node.message()
    node.runtime.script = HELD
    running = node.start(message)
    node.container()
    running.attempt.ask(Reason.CANCELLED_BY_USER)
    result = running.join()
    assert isinstance(result, Ended)
    assert result.state is State.CANCELLED


@pytest.mark.parametrize("step", ["resolve", "find_fault"], ids=["the image is pulled", "a network is tried"])
def test_a_cancel_while_the_engine_takes_its_time_leaves_that_behind(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    message, asked = node.message(), []

    def take_long(name: str, **_: object) -> str:
        asked.append(name)
        wait_until(lambda: node.record(message).state.is_final, what="the end, which does not wait for the engine")
        return name if step == "resolve" else ""

    monkeypatch.setattr(node.runtime, step, take_long)
    running = node.start(message)
    wait_until(lambda: asked, what="the engine asked")
    node.registry.experiments.cancel(message.header.experiment_id)
    result = running.join()
    assert isinstance(result, Ended)
    assert result.state is State.CANCELLED
    assert node.runtime.containers == []


def test_a_network_that_fails_while_inputs_arrive_hands_it_back(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, faults = node.message(), ["", "the filter has gone"]
    monkeypatch.setattr(node.runtime, "find_fault", lambda _: faults.pop(0))
    result = node.run(message)
    assert isinstance(result, PutOff)
    assert node.runtime.containers == []
    assert faults == []


@pytest.mark.parametrize("moment", ["before", "running"])
def test_a_drain_hands_it_back_without_spending_an_attempt_of_any_budget(node: FakeNode, moment: str) -> None:
    message = node.message()
    node.runtime.script = HELD
    if moment == "before":
        attempt = Attempt(node.site, message)
        attempt.ask(Reason.DRAINED)
        result = attempt.run()
    else:
        running = node.start(message)
        node.container()
        running.attempt.ask(Reason.DRAINED)
        result = running.join()
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert (result.delay, result.outcome.reason) == (timedelta(0), Reason.DRAINED)
    record = node.record(message)
    assert (record.state, record.platform_failures, record.user_failures) == (State.QUEUED, 0, 0)
    assert (node.marker(message), record.worker_id) == (None, None)
    assert isinstance(hold_elsewhere(node, message), Granted)


# The lease


def test_a_lost_lease_ends_the_container_and_commits_nothing(node: FakeNode) -> None:
    message = node.message()
    node.runtime.script = HELD
    running = node.start(message)
    container = node.container()
    node.clock.ahead += timedelta(seconds=10)
    other = hold_elsewhere(node, message)
    result = running.join()
    assert isinstance(result, PutOff)
    assert container.is_removed
    assert node.marker(message) is None
    assert node.record(message).token == other.lease.token
    assert [report for report in node.reports() if report.reason] == []


def test_a_silent_registry_freezes_the_container_until_it_answers(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = node.message()
    node.runtime.script = HELD
    running = node.start(message)
    container = node.container()
    renew = node.registry.leases.renew
    monkeypatch.setattr(node.registry.leases, "renew", unavailable)
    wait_until(lambda: container.is_paused, what="a frozen container")
    monkeypatch.setattr(node.registry.leases, "renew", renew)
    wait_until(lambda: not container.is_paused, what="a container that goes on")
    container.finish()
    result = running.join()
    assert isinstance(result, Ended)
    assert result.state is State.SUCCEEDED


def test_a_registry_that_was_wiped_costs_no_work(node: FakeNode) -> None:
    message = node.message()
    node.runtime.script = HELD
    running = node.start(message)
    container = node.container()
    token = node.record(message).token
    node.registry.forget()
    wait_until(
        lambda: message.header.experiment_id in node.registry.experiments.states([message.header.experiment_id]),
        what="a holder that is known again",
    )
    assert (node.record(message).token, node.record(message).attempt) == (token, 1)
    container.finish()
    result = running.join()
    assert isinstance(result, Ended)
    assert node.record(message).state is State.SUCCEEDED
    assert len(node.runtime.containers) == 1


@pytest.mark.parametrize("state", [State.RUNNING, State.FINALIZING])
def test_a_registry_that_is_away_for_a_while_costs_no_work(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    message, advance, refusals = node.message(), node.registry.leases.advance, []

    def flaky(lease: Any, asked: State, **options: Any) -> None:
        if asked is state and len(refusals) < 3:
            refusals.append(asked)
            unavailable()
        advance(lease, asked, **options)

    monkeypatch.setattr(node.registry.leases, "advance", flaky)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, refusals[0]) == (State.SUCCEEDED, state)
    assert len(node.runtime.containers) == 1


def test_an_engine_that_goes_down_while_it_is_to_stop_a_container_is_asked_again(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, stop, tries = node.message(timeout="300ms"), FakeContainer.stop, []

    def stop_or_die(container: FakeContainer, grace: timedelta) -> None:
        tries.append(grace)
        node.runtime.is_down = len(tries) == 1
        stop(container, grace)

    monkeypatch.setattr(FakeContainer, "stop", stop_or_die)
    node.runtime.script = HELD
    running = node.start(message)
    wait_until(lambda: tries, what="the first try to stop it")
    assert not node.runtime.containers[0].is_removed
    node.runtime.is_down = False
    result = running.join()
    assert isinstance(result, Ended)
    assert (result.outcome.reason, len(tries)) == (Reason.TIMED_OUT, 2)


def test_an_engine_that_never_comes_back_holds_no_experiment_for_ever(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.attempt.watch.ENGINE_PATIENCE", timedelta(milliseconds=200))
    node.runtime.script = HELD
    running = node.start(node.message(timeout="300ms"))
    wait_until(lambda: node.runtime.containers, what="a container")
    node.runtime.is_down = True
    result = running.join()
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert result.outcome.reason is Reason.RUNTIME_FAILURE
    node.runtime.is_down = False
    (left,) = node.runtime.find(node.site.node_id)
    left.remove()


def test_a_container_that_the_engine_has_lost_is_the_platforms_fault(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeFailure("no such container")

    message = node.message()
    monkeypatch.setattr(FakeContainer, "wait", lost)
    result = node.run(message)
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert result.outcome.reason is Reason.RUNTIME_FAILURE


def test_what_a_lost_worker_of_this_machine_has_left_running_goes_before_the_next_attempt_starts(
    node: FakeNode,
) -> None:
    message = node.message()
    lease = hold_elsewhere(node, message, ttl=timedelta(seconds=5)).lease
    labels = [
        Labels(experiment_id=experiment_id, attempt=1, token=lease.token, node_id=node.site.node_id)
        for experiment_id in (lease.experiment_id, "another")
    ]
    left = [FakeContainer(replace(PLAN, labels=each), HELD, node.runtime.check) for each in labels]
    node.runtime.containers += left
    node.clock.ahead = timedelta(seconds=10)
    node.runtime.script = lambda _plan: Script(exit=Exit(code=0 if left[0].is_removed else 1))
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, [each.is_removed for each in left]) == (State.SUCCEEDED, [True, False])
    left[1].remove()


def test_what_an_earlier_attempt_had_of_this_machine_is_free_before_the_next_one_starts(node: FakeNode) -> None:
    message = node.message()
    lease = hold_elsewhere(node, message, ttl=timedelta(seconds=5)).lease
    earlier, other = (keep_lease(node, each) for each in (lease, replace(lease, experiment_id=make_experiment_id())))
    node.clock.ahead = timedelta(seconds=10)
    seen: list[set[str]] = []

    def start(_plan: Plan) -> Script:
        seen.append(set(read_leases(node.site.leases)))
        return Script()

    node.runtime.script = start
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, len(seen)) == (State.SUCCEEDED, 1)
    assert (earlier in seen[0], other in seen[0], len(seen[0])) == (False, True, 2)
    left = list((node.site.folder / "attempts").iterdir())
    assert [folder.name for folder in left] == [other]
    left[0].rmdir()
    forget(node.site.leases, other)


def keep_lease(node: FakeNode, lease: Lease) -> str:
    """Leave what a lost worker of this machine leaves of a lease; return its name."""
    kept = KeptLease(
        experiment_id=lease.experiment_id,
        attempt=lease.attempt,
        token=lease.token,
        worker_id=WorkerId("gpu0@host"),
        queue=node.queue,
        boot_id=read_boot_id(),
        deadline_seconds=clock_seconds(),
    )
    LeaseFile(node.site.leases, kept).create(b"sealed")
    workspace.attempt_folder(node.site.folder, lease).mkdir(parents=True)
    return kept.name


# The marker is the truth


@pytest.mark.security_case("replayed after success")
def test_a_replay_after_a_registry_was_wiped_meets_the_marker(node: FakeNode) -> None:
    """A message is sent again after its experiment has ended and the registry has forgotten everything.

    Refused: the marker in the store is the end; nothing is started, and the registry is told that end.
    Evidence: one container in all, the marker as it was, the registry's record.
    """
    message = node.message()
    node.register(message)
    node.run(message)
    first = node.marker(message)
    node.registry.forget()
    node.clock.ahead += timedelta(seconds=10)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (len(node.runtime.containers), node.marker(message)) == (1, first)
    assert node.record(message).state is State.SUCCEEDED


@pytest.mark.security_case("same id, another message")
def test_another_message_under_a_known_id_starts_nothing_and_is_reported_to_nobody(node: FakeNode) -> None:
    """A message of a trusted sender that names the id of an experiment which waits already.

    Refused: it becomes a dead letter, BAD_ENVELOPE; the first one is untouched and runs as ever.
    Evidence: no container, no report, the record before and after; then the first one succeeds.
    Red before: it got the lease, and ran in the first one's name.
    """
    first, other = node.message(), node.message(command=["false"])
    node.register(first)
    before = node.record(first)
    forged = replace(other, header=replace(other.header, experiment_id=first.header.experiment_id))
    result = node.run(forged)
    assert isinstance(result, Ended)
    assert (result.outcome.reason, result.is_dead_letter) == (Reason.BAD_ENVELOPE, True)
    assert (node.runtime.containers, node.reports(), node.record(first)) == ([], [], before)
    ended = node.run(first)
    assert isinstance(ended, Ended)
    assert ended.state is State.SUCCEEDED


def test_a_marker_of_an_earlier_attempt_is_followed_and_reported_and_nothing_runs(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = node.message()
    node.register(message)
    finish = node.registry.leases.finish

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(node.registry.leases, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        node.run(message)
    monkeypatch.setattr(node.registry.leases, "finish", finish)
    first = node.marker(message)
    assert first is not None
    node.reports()
    node.clock.ahead += timedelta(seconds=10)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, result.outcome.reason) == (State.SUCCEEDED, Reason.EXITED_ZERO)
    record = node.record(message)
    assert (record.state, record.exit_code) == (State.SUCCEEDED, 0)
    assert node.marker(message) == first
    assert len(node.runtime.containers) == 1
    (report,) = node.reports()
    assert (report.state, report.reason, report.manifest) == (State.SUCCEEDED, Reason.EXITED_ZERO, first.manifest)


def test_of_two_writers_of_the_marker_the_first_wins(node: FakeNode) -> None:
    message = node.message()
    # The older attempt is about to write its marker when its lease is lost, and does not learn of it.
    about, go_on = Event(), Event()

    def hold_first_marker(method: str, _key: str) -> None:
        if method == "put_if_absent" and not about.is_set():
            about.set()
            go_on.wait(10)

    node.store.fault = hold_first_marker
    node.runtime.script = Script(exit=Exit(code=3))
    slow = node.start(message)
    assert about.wait(10)
    node.clock.ahead += timedelta(seconds=10)
    node.runtime.script = HELD
    newer = node.start(message)
    fresh = node.container(2)
    go_on.set()
    first = slow.join()
    assert isinstance(first, PutOff)
    fresh.finish(Exit(code=0))
    second = newer.join()
    assert isinstance(second, Ended)
    marker = node.marker(message)
    assert marker is not None
    assert (marker.attempt, marker.state, marker.exit_code) == (1, State.FAILED, 3)
    assert (second.state, second.outcome.reason) == (State.FAILED, Reason.EXITED_NONZERO)
    record = node.record(message)
    assert (record.state, record.exit_code) == (State.FAILED, 3)


def test_a_marker_whose_answer_was_lost_is_known_again(node: FakeNode) -> None:
    message, writes = node.message(), []

    def fault(method: str, key: str) -> None:
        if method == "put_if_absent":
            writes.append(key)
            if len(writes) == 1:
                node.store._store.put_if_absent(key, written[0])
                raise StoreUnavailable("the answer was lost")

    written: list[bytes] = []
    put_if_absent = node.store.__getattr__("put_if_absent")

    def remember(key: str, content: bytes) -> bool:
        written.append(content)
        return bool(put_if_absent(key, content))

    node.store.put_if_absent = remember  # type: ignore[attr-defined]
    node.store.fault = fault
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, len(writes)) == (State.SUCCEEDED, 2)
    assert [report.state for report in node.reports() if report.reason] == [State.SUCCEEDED]


# The store fails at each step


@pytest.mark.parametrize(("method", "part"), [("put", "/logs/"), ("put", "manifest.json")])
def test_a_store_that_fails_while_the_end_is_stored_is_tried_again_later(
    node: FakeNode, method: str, part: str
) -> None:
    message = node.message()
    node.runtime.script = Script(output=[("stdout", b"hello\n")])
    node.store.fault = failing(StoreUnavailable("503"), method, part)
    with stamina.set_testing(True, attempts=2):
        result = node.run(message)
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert result.outcome.reason is Reason.STORE_UNAVAILABLE
    assert node.marker(message) is None
    assert node.record(message).platform_failures == 1


@pytest.mark.parametrize(("method", "is_known"), [("put_if_absent", True), ("size", False)])
def test_a_store_that_does_not_take_or_tell_the_marker_leaves_it_open_and_loses_no_worker(
    node: FakeNode, method: str, *, is_known: bool
) -> None:
    message = node.message()
    if is_known:
        node.register(message)
    node.store.fault = failing(StoreUnavailable("503"), method, "RESULT")
    with stamina.set_testing(True, attempts=2):
        result = node.run(message)
    assert isinstance(result, PutOff)
    assert result.outcome == Outcome(reason=Reason.STORE_UNAVAILABLE, detail="503")
    record = node.record(message)
    assert (record.state, record.worker_id, record.platform_failures) == (State.QUEUED, None, 1)
    assert [report.state for report in node.reports() if report.reason] == [State.QUEUED]
    node.store.fault = lambda *_: None
    node.clock.ahead += result.delay
    assert isinstance(node.run(message), Ended)
    assert [past.reason for past in node.record(message).history] == [Reason.STORE_UNAVAILABLE]


def test_a_cancel_whose_marker_the_store_does_not_take_is_committed_later(node: FakeNode) -> None:
    message = node.message()
    hold_elsewhere(node, message, ttl=timedelta(seconds=5))
    node.registry.experiments.cancel(message.header.experiment_id)
    node.clock.ahead = timedelta(seconds=10)
    node.store.fault = failing(StoreUnavailable("503"), "put_if_absent", "RESULT")
    with stamina.set_testing(True, attempts=2):
        result = node.run(message)
    assert isinstance(result, PutOff)
    node.store.fault = lambda *_: None
    node.clock.ahead += result.delay
    last = node.run(message)
    assert isinstance(last, Ended)
    assert (last.state, node.record(message).state) == (State.CANCELLED, State.CANCELLED)


def test_a_store_that_hiccups_costs_nothing(node: FakeNode) -> None:
    message, failures = node.message(), []

    def fault(method: str, key: str) -> None:
        if method in ("put", "put_if_absent") and (method, key) not in failures and "/logs/" not in key:
            failures.append((method, key))
            raise StoreUnavailable("503")

    node.store.fault = fault
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, len(failures)) == (State.SUCCEEDED, 2)


def test_a_store_that_cannot_be_asked_for_an_earlier_end_puts_it_off(node: FakeNode) -> None:
    message = node.message()
    node.store.fault = failing(StoreUnavailable("503"), "size", "RESULT")
    assert isinstance(node.run(message), PutOff)
    assert node.runtime.containers == []


# The order of the end


def test_the_end_has_one_order(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    message = node.message()
    node.register(message)
    finish, put, remove = node.registry.leases.finish, node.site.outbox.put, FakeContainer.remove

    def note(name: str, wrapped: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any, **options: Any) -> Any:
            order.append(name)
            return wrapped(*arguments, **options)

        return noting

    def note_report(report: Any, **options: Any) -> bool:
        if report.state and report.state.is_final:
            order.append("report")
        return put(report, **options)

    def note_store(method: str, key: str) -> None:
        if method.startswith("put"):
            order.append("manifest" if key.endswith("manifest.json") else "marker" if "RESULT" in key else "log")

    monkeypatch.setattr(node.registry.leases, "finish", note("registry", finish))
    monkeypatch.setattr(FakeContainer, "remove", note("container removed", remove))
    monkeypatch.setattr(node.site.outbox, "put", note_report)
    node.store.fault = note_store
    node.run(message)
    assert order == ["manifest", "container removed", "marker", "report", "registry"]


def test_reports_of_an_attempt_are_numbered_without_a_gap_and_end_with_its_end(node: FakeNode) -> None:
    message = node.message()
    node.runtime.script = Script(output=[("stdout", b"::jobqueue progress=0.5::\nlast\n")], exit=Exit(code=3))
    node.run(message)
    reports = node.reports()
    assert [report.sequence for report in reports] == list(range(len(reports)))
    assert {(report.attempt, report.token) for report in reports} == {(1, node.record(message).token)}
    states = [report.payload.task_state for report in reports if hasattr(report.payload, "task_state")]
    assert (states[0], states[-1]) == (TaskState.PRESTART, TaskState.FAILED)
    assert sorted(states) == states
    final = reports[-1]
    assert (final.state, final.reason, final.exit_code) == (State.FAILED, Reason.EXITED_NONZERO, 3)


def test_secrets_appear_nowhere(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    message = node.message(secrets={"TOKEN": "hunter2-hunter2"})
    output = [("stdout", b"token=hunter2-"), ("stdout", b"hunter2!\n"), ("stderr", b"hunter2-hunter2\n")]

    def print_and_tell(plan: Plan) -> Script:
        (plan.workspace / PROGRESS_FILE).write_text('{"token": "hunter2-\\u0068unter2"}\n')
        return Script(output=output, exit=Exit(code=1))

    node.runtime.script = print_and_tell
    with caplog.at_level("DEBUG"):
        result = node.run(message)
    assert node.record(message).progress == '{"token": "[secret]"}'
    assert node.runtime.containers[0].plan.env["TOKEN"] == "hunter2-hunter2"
    said = [*node.stored().values(), repr(result).encode(), repr(node.record(message)).encode()]
    said += [repr(report).encode() for report in node.reports()] + [caplog.text.encode()]
    assert not [text for text in said if b"hunter2" in text]
    assert node.output(message) == b"token=[secret]!\n"


def test_an_error_of_the_nodes_own_ends_the_attempt_with_a_reason(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_plan: object) -> None:
        raise OSError(28, "No space left on device")

    message = node.message()
    monkeypatch.setattr(node.runtime, "start", full)
    result = node.run(message)
    assert isinstance(result, PutOff)
    assert result.outcome == Outcome(reason=Reason.NODE_DISK_FULL)
