"""What fits beside what runs already, and what becomes of what does not."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from jobqueue.errors import BrokerUnavailable
from jobqueue.resources import Offer, Resources
from workers.delivery import room as module
from workers.delivery.room import LATEST, SOON, Room, make_room

GIB = 2**30


def resources(cpus: float = 1, memory: int = 1) -> Resources:
    return Resources(cpus=cpus, memory_bytes=memory * GIB, disk_bytes=0, shm_bytes=0)


class Slot:
    """A CPU slot with four cores and 8 GiB, and what it has put off."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.adopted: dict[str, Resources] = {}
        self.deferred: list[timedelta] = []
        self.error: Exception | None = None
        offer = Offer(cpus=4, memory_bytes=8 * GIB, disk_bytes=GIB)
        site = SimpleNamespace(offer=offer, deliveries=self, slot="cpu")
        node: Any = SimpleNamespace(site=site, promised=lambda: self.adopted)
        self.room = Room(node, taken=lambda: self.taken)

    def defer(self, message: Any, *, queue: str, delay: timedelta) -> None:
        if self.error:
            raise self.error
        self.deferred.append(delay)

    def take(self, name: str, asked: Resources) -> bool:
        header: Any = SimpleNamespace(experiment_id=name, resources=asked, queue="p_cpu")
        is_taken = self.room.admit(object(), header)
        self.taken += [name] if is_taken else []
        return is_taken


@pytest.fixture
def slot() -> Slot:
    return Slot()


@pytest.mark.parametrize(
    ("each", "most"), [(resources(2), 2), (resources(1, 4), 2), (resources(0.4), 8), (resources(), 4)]
)
def test_no_more_runs_at_once_than_there_are_cores_and_memory_for(slot: Slot, each: Resources, most: int) -> None:
    assert [slot.take(f"e{number}", each) for number in range(10)] == [True] * most + [False] * (10 - most)
    assert slot.deferred == [SOON] * (10 - most)


def test_smaller_work_behind_what_does_not_fit_is_taken_meanwhile(slot: Slot) -> None:
    assert slot.take("a", resources(3))
    assert not slot.take("large", resources(2))
    assert slot.take("small", resources(1))


def test_what_did_not_fit_is_taken_when_something_has_ended(slot: Slot) -> None:
    slot.take("a", resources(3))
    assert not slot.take("large", resources(4))
    slot.taken.remove("a")
    assert slot.take("large", resources(4))


def test_what_an_earlier_worker_has_started_needs_its_room_too(slot: Slot) -> None:
    slot.adopted["old"] = resources(3)
    assert not slot.take("a", resources(2))
    assert slot.take("b", resources(1))


def test_a_second_delivery_of_what_runs_needs_no_room_of_its_own(slot: Slot) -> None:
    assert slot.take("a", resources(4))
    assert slot.take("a", resources(4))


def test_what_never_fits_is_let_through_for_its_attempt_to_say_so(slot: Slot) -> None:
    slot.take("a", resources(4))
    assert slot.take("huge", resources(5))
    assert slot.deferred == []


def test_a_long_backlog_that_does_not_fit_goes_round_slowly(slot: Slot) -> None:
    slot.take("a", resources(4))
    for number in range(400):
        assert not slot.take(f"e{number}", resources())
    assert slot.deferred == sorted(slot.deferred)
    assert (slot.deferred[0], slot.deferred[-1]) == (SOON, LATEST)


def test_a_broker_that_cannot_put_it_off_gets_it_back(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    back: list[Any] = []
    monkeypatch.setattr(module, "requeue_later", back.append)
    slot.error = BrokerUnavailable("away")
    slot.take("a", resources(4))
    assert not slot.take("b", resources())
    assert len(back) == 1


def test_only_a_cpu_slot_counts_cores(slot: Slot) -> None:
    node: Any = slot.room._node
    assert make_room(node) is not None
    node.site.slot = ""
    assert make_room(node) is None
