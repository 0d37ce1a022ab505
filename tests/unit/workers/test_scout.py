"""Which request queues a worker may serve: what patterns find, whose senders are trusted, what can fit."""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from services.node import FakeNode

from jobqueue.brokers.base import Seen
from jobqueue.errors import BrokerUnavailable, RegistryUnavailable
from jobqueue.header import Header
from jobqueue.ids import make_experiment_id
from jobqueue.keys import Signer, make_pair, revoke, trust
from jobqueue.registry.pauses import Pause
from jobqueue.resources import Resources
from jobqueue.routing import Selection, parse_selection
from workers.delivery.scout import Scout

SECOND = timedelta(seconds=1)
SMALL = Resources(cpus=1, memory_bytes=2**27, disk_bytes=2**20, shm_bytes=2**20)
HUGE = replace(SMALL, cpus=1000)


class World:
    """A node whose broker has the queues that a test wants."""

    def __init__(self, node: FakeNode, folder: Path) -> None:
        self.site = node.site
        self.registry = node.registry
        self.clock = node.clock
        self.keys_folder = node.site.keys.folder
        self.folder = SimpleNamespace(root=folder)
        self.settings = SimpleNamespace(broker="memory://")
        self.broker = SimpleNamespace(survey=self)
        self.waiting: dict[str, int | None] = {}
        self.others: tuple[str, ...] = ()
        self.queues: tuple[str, ...] = ()
        self.announced: list[tuple[str, ...]] = []
        self.looks = 0
        self.error: Exception | None = None

    def look(self, selection: Selection) -> Seen:
        self.looks += 1
        if self.error:
            raise self.error
        found = {name: count for name, count in self.waiting.items() if selection.finds(name)}
        return Seen(waiting=found, others=self.others)

    def serve(self, queues: tuple[str, ...]) -> None:
        self.queues = queues
        self.announced.append(queues)

    def scout(self, *words: str) -> Scout:
        node: Any = self
        return Scout(node, parse_selection(words), refresh=SECOND)


@pytest.fixture
def world(node: FakeNode, tmp_path: Path) -> World:
    return World(node, tmp_path)


@pytest.fixture
def scout(world: World) -> Iterator[Scout]:
    with closing(world.scout("named_cpu", "lab_*")) as opened:
        yield opened


def make_header(queue: str, resources: Resources) -> Header:
    now = datetime.now(UTC)
    return Header(
        experiment_id=make_experiment_id(),
        queue=queue,
        project="lab",
        resources=resources,
        submitted_at=now,
        expires_at=now + SECOND,
    )


def test_what_is_found_is_told_and_announced_with_what_was_named(world: World, scout: Scout) -> None:
    world.waiting = {"lab_b": 3, "lab_a": 0, "vision": 1}
    scout.look()
    assert scout.found == {"lab_a": 0, "lab_b": 3}
    assert world.announced == [("named_cpu", "lab_a", "lab_b")]
    scout.look()
    assert len(world.announced) == 1
    world.waiting = {"lab_b": 3}
    scout.look()
    assert (dict(scout.found), world.queues) == ({"lab_b": 3}, ("named_cpu", "lab_b"))


def test_each_look_makes_a_new_mapping(world: World, scout: Scout) -> None:
    world.waiting = {"lab_a": 1}
    scout.look()
    first = scout.found
    scout.look()
    assert scout.found is not first


def test_queues_for_the_other_kind_of_slot_are_not_served(world: World, scout: Scout) -> None:
    world.waiting = {"lab_cpu": 1, "lab_gpu": 1, "lab_odd": 1}
    scout.look()
    assert set(scout.found) == {"lab_cpu", "lab_odd"}
    world.site = replace(world.site, gpus=("GPU-1",))
    scout.look()
    assert set(scout.found) == {"lab_gpu", "lab_odd"}


def test_a_queue_is_served_once_a_sender_is_trusted_for_it_without_a_restart(world: World, tmp_path: Path) -> None:
    for trusted in (world.keys_folder / "trusted").iterdir():
        trusted.unlink()
    line = make_pair(tmp_path / "other", Signer.SENDER).line
    key_id = trust(world.keys_folder, line, queue_prefix="lab_b")
    world.waiting = {"lab_a": 1, "lab_b": 1}
    with closing(world.scout("lab_*")) as scout:
        scout.look()
        assert set(scout.found) == {"lab_b"}
    trust(world.keys_folder, line, queue_prefix="lab_a")
    world.site = replace(world.site, keys=type(world.site.keys)(world.keys_folder))
    with closing(world.scout("lab_*")) as scout:
        scout.look()
        assert set(scout.found) == {"lab_a", "lab_b"}
    revoke(world.keys_folder, key_id)


def test_keys_that_cannot_be_read_change_nothing(world: World, scout: Scout, caplog: pytest.LogCaptureFixture) -> None:
    world.waiting = {"lab_a": 1}
    scout.look()
    broken = world.keys_folder / "trusted" / "broken.pub"
    broken.write_text("no key")
    world.site = replace(world.site, keys=type(world.site.keys)(world.keys_folder))
    world.waiting = {"lab_a": 1, "lab_b": 1}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            scout._rounds.take()
    assert set(scout.found) == {"lab_a"}
    assert [record.message for record in caplog.records].count("round.failed") == 1
    broken.unlink()
    world.site = replace(world.site, keys=type(world.site.keys)(world.keys_folder))
    scout._rounds.take()
    assert set(scout.found) == {"lab_a", "lab_b"}


def test_a_broker_that_is_away_changes_nothing(world: World, scout: Scout) -> None:
    world.waiting = {"lab_a": 1}
    scout.look()
    world.error = BrokerUnavailable("away")
    scout._rounds.take()
    assert (dict(scout.found), world.queues) == ({"lab_a": 1}, ("named_cpu", "lab_a"))


def test_a_pattern_that_matches_nothing_is_told_once_with_what_is_there(
    world: World, scout: Scout, caplog: pytest.LogCaptureFixture
) -> None:
    world.others = tuple(f"vision_{number}" for number in range(7))
    with caplog.at_level(logging.WARNING):
        scout.look()
        scout.look()
    (told,) = [vars(record) for record in caplog.records if record.message == "queues.none_match"]
    assert (told["pattern"], told["again_every"]) == ("lab_*", "1s")
    assert told["seen"].startswith("7 request queues: vision_0, vision_1")
    assert "2 more" in told["seen"]


def test_what_can_never_fit_is_not_served_and_a_smaller_message_brings_it_back(world: World, scout: Scout) -> None:
    world.waiting = {"lab_a": 1, "lab_b": 1}
    scout.look()
    scout.saw(make_header("lab_a", HUGE))
    scout.look()
    assert set(scout.found) == {"lab_b"}
    assert world.registry.needs.known(["lab_a"]) == {"lab_a": HUGE}
    world.registry.needs.note("lab_a", SMALL)  # by another worker, which is large enough
    scout.look()
    assert set(scout.found) == {"lab_a", "lab_b"}


def test_a_first_message_that_lies_keeps_nobody_from_its_queue_for_good(world: World, scout: Scout) -> None:
    world.waiting = {"lab_a": 9}
    scout.look()
    scout.saw(make_header("lab_a", HUGE))
    scout.look()
    assert scout.found == {}
    world.clock.ahead += timedelta(minutes=6)
    scout.look()
    assert set(scout.found) == {"lab_a"}


def test_a_queue_that_is_named_is_served_whatever_its_messages_ask_for(world: World) -> None:
    with closing(world.scout("lab_a")) as scout:
        scout.saw(make_header("lab_a", HUGE))
        scout.look()
        assert scout.selection.names == ("lab_a",)
        assert world.looks == 0
    assert world.registry.needs.known(["lab_a"]) == {"lab_a": HUGE}


def test_while_the_registry_is_away_all_is_served(world: World, scout: Scout, monkeypatch: pytest.MonkeyPatch) -> None:
    world.waiting = {"lab_a": 1}
    scout.saw(make_header("lab_a", HUGE))
    scout.look()
    assert scout.found == {}

    def fail(*_: Any) -> None:
        raise RegistryUnavailable("away")

    monkeypatch.setattr(world.registry.needs, "known", fail)
    scout.look()
    assert set(scout.found) == {"lab_a"}


def test_a_new_queue_is_worth_a_look_before_anybody_knows_what_waits_in_it(world: World, scout: Scout) -> None:
    world.waiting = {"lab_a": 0}
    scout.look()
    world.waiting = {"lab_a": 0, "lab_new": 0}
    scout.look()
    assert scout.found == {"lab_a": 0, "lab_new": None}
    for _ in range(20):
        scout.look()
    assert scout.found == {"lab_a": 0, "lab_new": 0}


def test_one_worker_of_a_node_asks_and_the_others_read_what_it_saw(world: World, scout: Scout) -> None:
    world.waiting = {"lab_a": 2}
    scout.look()
    with closing(world.scout("named_cpu", "lab_*")) as other:
        other.look()
        assert (dict(other.found), world.looks) == ({"lab_a": 2}, 1)
        with closing(world.scout("lab_*", "vision_*")) as different:
            different.look()
            assert world.looks == 2
        world.waiting = {"lab_a": 5}
        scout.close()
        other.look()
        assert (dict(other.found), world.looks) == ({"lab_a": 5}, 3)


def test_what_nobody_has_refreshed_for_long_is_asked_for_by_each(
    world: World, scout: Scout, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.waiting = {"lab_a": 2}
    scout.look()
    monkeypatch.setattr("workers.delivery.view._ROUNDS", 0)
    monkeypatch.setattr("workers.delivery.view._MOMENT", timedelta(seconds=-1))
    with closing(world.scout("named_cpu", "lab_*")) as other:
        other.look()
        assert (dict(other.found), world.looks) == ({"lab_a": 2}, 2)


def test_what_is_paused_is_known_and_stays_so_while_the_registry_is_away(
    world: World, scout: Scout, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.registry.pauses.pause(Pause(queue="lab_a", at=datetime.now(UTC), by="ann@desk"))
    with caplog.at_level(logging.INFO):
        scout.look()
        scout.look()
    assert scout.paused == {"lab_a"}
    assert [record.message for record in caplog.records].count("queues.paused") == 1

    def be_away() -> dict[str, Pause]:
        raise RegistryUnavailable("away")

    world.registry.pauses.resume("lab_a")
    with monkeypatch.context() as patched:
        patched.setattr(world.registry.pauses, "paused", be_away)
        scout.look()
    assert scout.paused == {"lab_a"}
    scout.look()
    assert scout.paused == frozenset()
