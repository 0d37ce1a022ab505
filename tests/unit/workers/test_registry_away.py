"""A registry that is away while an attempt runs: nothing starts in doubt, and no work that was done is lost."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import stamina
from services.node import FakeNode
from services.waiting import wait_until

from jobqueue.errors import RegistryUnavailable
from jobqueue.keys import KeyRing
from jobqueue.lifecycle import Reason, State
from workers.attempt.runtimes.base import Exit
from workers.attempt.runtimes.fake import Script
from workers.attempt.supervise import Attempt, Ended, PutOff

HELD = Script(is_held=True)


class Outage:
    """Cuts some calls of the registry's leases off, as long as it lasts."""

    def __init__(self, node: FakeNode, monkeypatch: pytest.MonkeyPatch, *methods: str) -> None:
        self.is_on = True
        self.refused: list[tuple[str, Any]] = []
        for method in methods:
            monkeypatch.setattr(node.registry.leases, method, self._wrap(method, getattr(node.registry.leases, method)))

    def _wrap(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.is_on:
                self.refused.append((method, arguments[1:]))
                raise RegistryUnavailable("silent")
            return original(*arguments, **options)

        return call


def pull_slowly(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the image take as long as a lease."""

    def pull(image: str, **_: object) -> str:
        time.sleep(node.site.lease.total_seconds())
        return image

    monkeypatch.setattr(node.runtime, "resolve", pull)


def test_a_registry_that_does_not_take_the_state_costs_nothing(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    message = node.message()
    outage = Outage(node, monkeypatch, "advance")
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, node.record(message).attempt, node.record(message).platform_failures) == (
        State.SUCCEEDED,
        1,
        0,
    )
    assert {arguments[0] for _, arguments in outage.refused} >= {State.PREPARING, State.RUNNING}
    states = [report.state for report in node.reports() if report.state]
    assert states == [State.PREPARING, State.RUNNING, State.FINALIZING, State.SUCCEEDED]


def test_a_registry_that_missed_the_start_is_told_while_it_runs(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.attempt.watch.PROGRESS_EVERY", timedelta(milliseconds=50))
    message = node.message()
    node.runtime.script = HELD
    outage = Outage(node, monkeypatch, "advance")
    running = node.start(message)
    container = node.container()
    assert node.record(message).state is State.PREPARING
    outage.is_on = False
    wait_until(lambda: node.record(message).state is State.RUNNING, what="a record that says so")
    container.finish()
    assert isinstance(running.join(), Ended)


def test_a_run_that_ended_while_the_registry_was_away_for_long_is_found_by_the_next_delivery(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = node.message()
    node.runtime.script = HELD
    running = node.start(message)
    container = node.container()
    outage = Outage(node, monkeypatch, "advance", "renew", "finish", "release")
    container.emit("stdout", b"result\n")
    with stamina.set_testing(True, attempts=3):
        container.finish()
        assert isinstance(running.join(), PutOff)
    marker = node.marker(message)
    assert marker is not None
    assert (marker.reason, marker.attempt, node.output(message)) == (Reason.EXITED_ZERO, 1, b"result\n")
    assert marker.manifest in node.stored()
    assert [report.state for report in node.reports()][-1] is State.SUCCEEDED
    outage.is_on = False
    node.clock.ahead += timedelta(seconds=10)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, node.record(message).state, len(node.runtime.containers)) == (
        State.SUCCEEDED,
        State.SUCCEEDED,
        1,
    )


@pytest.mark.parametrize("asked", [None, Reason.DRAINED])
def test_an_end_that_the_registry_missed_for_a_while_is_told_when_it_is_back(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, asked: Reason | None
) -> None:
    message = node.message()
    node.runtime.script = HELD
    running = node.start(message)
    container = node.container()
    outage = Outage(node, monkeypatch, "advance", "finish", "release")
    if asked:
        running.attempt.ask(asked)
    else:
        container.finish()
    wait_until(lambda: {"finish", "release"} & {method for method, _ in outage.refused}, what="a refused end")
    outage.is_on = False
    running.join()
    record = node.record(message)
    assert (record.state, record.platform_failures) == (State.QUEUED if asked else State.SUCCEEDED, 0)
    assert [past.reason for past in record.history] == ([asked] if asked else [])


def test_no_container_starts_while_the_lease_is_in_doubt(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    message = node.message()
    outage = Outage(node, monkeypatch, "renew")
    pull_slowly(node, monkeypatch)
    running = node.start(message)
    staged = node.site.folder / "attempts"
    wait_until(lambda: list(staged.glob("*/workspace")), what="everything but the container")
    doubt_ends_at = time.monotonic() + node.site.lease.total_seconds()
    wait_until(lambda: time.monotonic() > doubt_ends_at or node.runtime.containers, what="a start, or patience")
    assert node.runtime.containers == []
    outage.is_on = False
    result = running.join()
    assert isinstance(result, Ended)
    assert (result.state, node.record(message).attempt) == (State.SUCCEEDED, 1)


def test_what_is_frozen_is_not_thawed_to_be_stopped(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    message = node.message(timeout="900ms")
    node.runtime.script = HELD
    running = node.start(message)
    container = node.container()
    outage = Outage(node, monkeypatch, "renew")
    wait_until(lambda: container.is_paused, what="doubt")
    overdue_at = time.monotonic() + 1.0
    wait_until(lambda: time.monotonic() > overdue_at or not container.is_paused, what="a thaw, or patience")
    assert container.is_paused
    outage.is_on = False
    result = running.join()
    assert isinstance(result, Ended)
    assert result.outcome.reason is Reason.TIMED_OUT


@pytest.mark.parametrize("reason", [Reason.DRAINED, Reason.CANCELLED_BY_USER])
def test_who_asks_for_the_end_of_what_is_frozen_has_it_killed_as_it_is(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, reason: Reason
) -> None:
    node.runtime.script = HELD
    message = node.message()
    running = node.start(message)
    container = node.container()
    outage = Outage(node, monkeypatch, "renew")
    wait_until(lambda: container.is_paused, what="doubt")
    running.attempt.ask(reason)
    result = running.join()
    assert outage.is_on
    assert (container.grace, "resume" in container.calls) == (timedelta(0), False)
    assert result.outcome is not None
    assert result.outcome.reason is reason


def test_a_cancel_waits_until_the_lease_is_sure_again(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node.runtime.script = HELD
    message = node.message()
    running = node.start(message)
    container = node.container()
    outage = Outage(node, monkeypatch, "renew")
    wait_until(lambda: container.is_paused, what="doubt")
    node.registry.experiments.cancel(message.header.experiment_id)
    outage.is_on = False
    result = running.join()
    assert isinstance(result, Ended)
    assert result.state is State.CANCELLED
    assert container.grace == node.site.grace
    assert container.calls.index("resume") < container.calls.index("stop")


def test_what_is_killed_while_its_lease_is_in_doubt_was_killed_by_somebody_else(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.runtime.script = HELD
    message = node.message()
    running = node.start(message)
    container = node.container()
    outage = Outage(node, monkeypatch, "renew")
    wait_until(lambda: container.is_paused, what="doubt")
    container.is_paused = False
    container.finish(Exit(code=137))
    wait_until(lambda: "remove" in container.calls, what="its removal")
    outage.is_on = False
    result = running.join()
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert result.outcome.reason is Reason.RUNTIME_FAILURE


def test_a_drain_ends_the_wait_for_a_registry_that_is_away(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    message = node.message()
    Outage(node, monkeypatch, "renew", "advance", "release")
    monkeypatch.setattr("workers.attempt.conclude.DRAIN_PATIENCE_SECONDS", 0.2)
    pull_slowly(node, monkeypatch)
    running = node.start(message)
    wait_until(lambda: list((node.site.folder / "attempts").glob("*/workspace")), what="everything but the container")
    running.attempt.ask(Reason.DRAINED)
    assert isinstance(running.join(), PutOff)
    assert node.runtime.containers == []


def test_keys_that_this_node_cannot_use_are_not_the_experiments_fault(node: FakeNode, tmp_path: Path) -> None:
    message = node.message()
    keys = list((tmp_path / "keys").glob("**/*.key"))
    for key in keys:
        key.chmod(0o644)
    site = replace(node.site, keys=KeyRing(tmp_path / "keys"))
    result = Attempt(site, message).run()
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert (result.outcome.reason, node.record(message).platform_failures) == (Reason.DOES_NOT_FIT, 0)
    assert "chmod" not in result.outcome.detail
    for key in keys:
        key.chmod(0o600)
    node.clock.ahead += result.delay
    assert isinstance(node.run(message), Ended)
