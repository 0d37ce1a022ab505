"""What a worker says of itself, and what it does when an operator wants it to drain."""

from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from services.node import FakeNode

from jobqueue.errors import RegistryUnavailable
from jobqueue.ids import ExperimentId, make_experiment_id
from jobqueue.lifecycle import Reason
from jobqueue.registry.presence import Drain, Gauge, WorkerRecord
from workers.attempt.health import Trouble
from workers.attempt.presence import Presence
from workers.bootstrap import Node
from workers.hardware.devices import Device

DEVICE = Device(uuid="GPU-a", index=0, name="A", memory_bytes=2**34, used_bytes=5, utilisation_percent=9)


@dataclass(kw_only=True)
class Worker:
    """A worker that only says how it is."""

    node: FakeNode
    running: list[ExperimentId] = field(default_factory=list)
    handed_back: int = 0

    def __post_init__(self) -> None:
        self.presence = self.start()

    def start(self) -> Presence:
        return Presence(
            self.node.site,
            queues=(self.node.queue,),
            places=2,
            running=lambda: self.running,
            seen=lambda: (DEVICE,),
            hand_back=self._hand_back,
        )

    def _hand_back(self) -> None:
        self.handed_back += 1

    def told(self) -> WorkerRecord:
        self.presence.announce()
        (record,) = self.node.registry.workers.present()
        return record


@pytest.fixture
def worker(node: FakeNode) -> Worker:
    return Worker(node=node)


def test_it_says_what_it_runs_and_on_what(worker: Worker) -> None:
    worker.running = [make_experiment_id(), make_experiment_id()]
    told = worker.told()
    assert set(told.experiment_ids) == set(worker.running)
    assert (told.state, told.condition, told.places, told.queues) == ("OK", "OK", 2, (worker.node.queue,))
    gauge = Gauge(uuid="GPU-a", name="A", memory_bytes=2**34, used_bytes=5, utilisation_percent=9)
    assert told.gauges == (gauge,)
    assert told.host
    assert told.started_at
    assert worker.told().started_at == told.started_at


def test_it_says_what_its_operator_allows(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, told = worker.node.site.policy, worker.told()
    assert (told.images, told.networks) == (policy.images, policy.networks)
    assert told.max_timeout_seconds == policy.max_timeout.total_seconds()
    monkeypatch.setattr("workers.attempt.presence._MAX_IMAGES", 0)
    assert worker.told().images == (), "there are too many to tell"


def test_it_says_what_is_wrong_with_its_node(worker: Worker) -> None:
    worker.node.runtime.is_down = True
    worker.node.site.health.on_change = worker.presence.announce
    worker.node.site.health.note(Reason.RUNTIME_FAILURE)
    (told,) = worker.node.registry.workers.present()
    assert (told.state, told.condition) == ("NO_ENGINE", "UNHEALTHY(NO_ENGINE)")
    assert told.detail


@pytest.mark.parametrize("target", ["node_id", "worker_id"])
def test_what_is_to_drain_says_so_at_once_also_after_a_restart_until_it_is_resumed(worker: Worker, target: str) -> None:
    workers = worker.node.registry.workers
    wish = Drain(target=getattr(worker.node.site, target))
    workers.drain(wish)
    assert worker.told().state == "DRAINING"
    assert worker.presence.wish == wish
    worker.presence = worker.start()
    assert worker.told().state == "DRAINING"
    workers.resume(wish.target)
    assert worker.told().state == "OK"
    assert (worker.presence.wish, worker.handed_back) == (None, 0)


def test_what_is_to_drain_now_hands_back_at_each_announcement_what_it_still_runs(worker: Worker) -> None:
    worker.node.registry.workers.drain(Drain(target=worker.node.site.node_id, is_hurried=True))
    for times in (1, 2):
        worker.presence.announce()
        assert worker.handed_back == times


def test_another_nodes_wish_is_not_its_own(worker: Worker) -> None:
    worker.node.registry.workers.drain(Drain(target="another"))
    assert worker.told().state == "OK"


def test_a_registry_that_is_away_changes_nothing(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.node.registry.workers.drain(Drain(target=worker.node.site.node_id))
    worker.presence.announce()

    def away(*_: object, **__: object) -> None:
        raise RegistryUnavailable("away")

    monkeypatch.setattr(worker.node.registry.workers, "announce", away)
    monkeypatch.setattr(worker.node.registry, "ping", away)
    worker.presence.announce()
    worker.presence.compare_clocks()
    assert worker.presence.wish is not None
    assert worker.node.site.health.is_fit


def test_a_machine_whose_clock_is_far_off_takes_nothing_until_it_is_right(worker: Worker) -> None:
    worker.node.clock.ahead = timedelta(minutes=3)
    worker.presence.compare_clocks()
    assert worker.node.site.health.trouble is Trouble.CLOCK_SKEW
    worker.node.clock.ahead = timedelta(0)
    worker.presence.compare_clocks()
    assert worker.node.site.health.is_fit


@pytest.mark.parametrize(
    ("wish", "is_fit", "is_on_trial", "is_taking"),
    [
        (None, True, False, True),
        (None, False, False, False),
        (None, False, True, True),
        (Drain(target="a"), True, False, False),
        (Drain(target="a"), False, True, False),
    ],
)
def test_a_worker_takes_messages_only_while_it_is_fit_or_on_trial_and_not_to_drain(
    wish: Drain | None, *, is_fit: bool, is_on_trial: bool, is_taking: bool
) -> None:
    made: Any = Node.__new__(Node)
    made.site = SimpleNamespace(health=SimpleNamespace(is_fit=is_fit, is_on_trial=is_on_trial))
    made.presence = SimpleNamespace(wish=wish)
    assert made.is_taking is is_taking
