"""What Celery's revoke means here: the experiment is cancelled, whoever runs it, and whether or not anybody does."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from celery.worker import state as worker_state
from celery.worker.control import Panel
from services.node import FakeNode
from services.waiting import wait_until

from jobqueue.errors import RegistryUnavailable
from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Reason, State
from workers.bootstrap import attach
from workers.delivery import control


class Office:
    """A worker as remote control sees it."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.app = SimpleNamespace()
        self.asked: list[tuple[str, Reason]] = []
        attach(self.app, SimpleNamespace(site=node.site, ask=lambda *what: self.asked.append(what)))  # type: ignore[arg-type]

    def command(self, name: str, *arguments: object, **options: object) -> object:
        reply = Panel.data[name](SimpleNamespace(app=self.app), *arguments, **options)
        for thread in threading.enumerate():
            if thread.name == "revoke":
                thread.join(10)
        return reply


@pytest.fixture
def office(node: FakeNode) -> Iterator[Office]:
    yield Office(node)
    worker_state.revoked.clear()


REVOKES: dict[str, Callable[[Office, str], object]] = {
    "revoke": lambda office, each: office.command("revoke", each),
    "revoke and terminate": lambda office, each: office.command("revoke", [each], terminate=True, signal="SIGKILL"),
    "terminate": lambda office, each: office.command("terminate", "KILL", [each]),
}


@pytest.mark.parametrize("name", REVOKES)
def test_an_experiment_that_nobody_runs_yet_is_cancelled(office: Office, name: str) -> None:
    submission = office.node.register(office.node.message())
    REVOKES[name](office, submission.id)
    assert office.node.registry.experiments.get(submission.id).state is State.CANCELLED
    assert office.asked == [(submission.id, Reason.CANCELLED_BY_USER)]


def test_what_is_no_experiment_and_what_nobody_knows_changes_nothing(office: Office) -> None:
    unknown = make_experiment_id()
    assert office.command("revoke", ["../x", 5, unknown]) == {"ok": f"cancelled: {unknown}"}
    assert office.asked == [(unknown, Reason.CANCELLED_BY_USER)]
    assert unknown in worker_state.revoked


def test_a_registry_that_is_away_for_a_moment_costs_no_cancel(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    submission = office.node.register(office.node.message())
    cancel, errors = office.node.registry.experiments.cancel, [RegistryUnavailable("away")]

    def cancel_or_raise(*arguments: object) -> State:
        if errors:
            raise errors.pop()
        return cancel(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(office.node.registry.experiments, "cancel", cancel_or_raise)
    office.command("revoke", submission.id)
    wait_until(
        lambda: office.node.registry.experiments.get(submission.id).state is State.CANCELLED, what="the tombstone"
    )


def test_celerys_own_commands_are_replaced() -> None:
    assert [Panel.data[name] for name in ("revoke", "terminate")] == [control.revoke, control.terminate]
