"""What looks at every message before Celery does: what is refused, dropped, adopted, handed on."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import ConsumerCancelled, NotFound
from celery.worker import state as worker_state
from kombu import Connection
from services.node import FakeNode

from jobqueue.application import CONTENT_TYPE, TASK
from jobqueue.brokers.base import Depth
from jobqueue.envelope import seal
from jobqueue.errors import BrokerUnavailable, KeyRefused
from jobqueue.header import Header
from jobqueue.ids import make_experiment_id
from jobqueue.keys import KeyRing, ensure_laptop_keys
from jobqueue.routing import Selection, first_queue
from jobqueue.spec import parse_spec
from workers.bootstrap import attach, node_of
from workers.delivery import consumer as module
from workers.delivery import gate as gate_module
from workers.delivery import refusals as refusals_module
from workers.delivery import returning
from workers.delivery.consumer import Consumer
from workers.delivery.ends import Ends
from workers.delivery.shared import Shared, share
from workers.delivery.turns import Turns


class Message:
    """A delivery, and what was done to it."""

    def __init__(self, body: bytes, experiment_id: str, *, queue: str, **changes: Any) -> None:
        self.body = body
        self.headers: Any = {"task": TASK, "id": experiment_id, "timelimit": [None, None], **changes}
        self.content_type = CONTENT_TYPE
        self.delivery_info = {"routing_key": queue}
        self.channel = SimpleNamespace(closed=False)
        self.done: list[str] = []

    def ack(self) -> None:
        self.done.append("ack")

    def requeue(self) -> None:
        self.done.append("requeue")


class Gate:
    """A consumer without Celery's machinery, and what it has decided."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.handed_on: list[Any] = []
        self.set_aside: list[tuple[str, str]] = []
        self.deferred: list[timedelta] = []
        self.has_place = True
        self.dead_before = 0
        self.refused_for_want_of_a_place: list[Any] = []
        self.passed: list[tuple[str, str]] = []
        self.error: Exception | None = None
        site = SimpleNamespace(
            keys=node.site.keys, outbox=node.site.outbox, worker_id=node.site.worker_id, deliveries=self
        )
        self.consumer = Consumer.__new__(Consumer)
        self.consumer.app = SimpleNamespace()
        broker = SimpleNamespace(queues=SimpleNamespace(depth=lambda _queue: Depth(ready=self.dead_before)))
        worker: Any = SimpleNamespace(site=site, broker=broker)
        attach(self.consumer.app, worker)
        self.seen: list[Header] = []
        self.closed: frozenset[str] = frozenset()
        self.scout: Any = SimpleNamespace(
            saw=self.seen.append, selection=Selection(), found={}, paused=frozenset[str]()
        )
        refusals = refusals_module.Refusals(worker)
        share(self.consumer.app, Shared(ends=Ends(), refusals=refusals, scout=self.scout))
        self.consumer._late = []
        self.consumer._intake = self  # type: ignore[assignment]
        self.consumer._turns = Turns()
        self.gate = self.consumer._gate = gate_module.Gate(
            worker, turns=self.consumer._turns, ends=Ends(), refusals=refusals
        )
        amqp = Connection("amqp://")
        self.consumer.connection_errors, self.consumer.channel_errors = amqp.connection_errors, amqp.channel_errors
        self.trouble: Exception | None = None
        self.site = site

    def dead_letter(self, message: Message, *, queue: str, reason: str, detail: str) -> None:
        if self.error:
            raise self.error
        self.set_aside.append((reason, detail))
        message.ack()

    def defer(self, message: Message, *, queue: str, delay: timedelta) -> None:
        self.deferred.append(delay)
        message.ack()

    @property
    def is_open(self) -> bool:
        return self.has_place

    def refuse(self, message: Message, consumers: Any) -> None:
        self.refused_for_want_of_a_place.append(message)
        self.meet_trouble()

    def took(self, queue: str, consumers: Any) -> None:
        assert queue == self.node.queue
        self.meet_trouble()

    def passed_over(self, source: str) -> None:
        self.passed.append((source, "refused"))

    def put_off(self, source: str) -> None:
        self.passed.append((source, "put off"))

    def meet_trouble(self) -> None:
        if self.trouble:
            raise self.trouble

    def learn(self, named: Any, found: Any, *, closed: Any) -> None:
        self.closed = closed

    def rearrange(self, consumers: Any) -> bool:
        self.meet_trouble()
        return False

    def was_served(self) -> bool:
        """Tell whether a queue that was never served goes before that of the messages."""
        return self.consumer._turns.order([self.node.queue, "~never"])[0] == "~never"

    def take(self, message: Message) -> None:
        self.consumer._take(message, self.handed_on.append)

    def seal(self, **options: Any) -> Message:
        body, header = self.node.seal(**options)
        return Message(body, header.experiment_id, queue=self.node.queue)


@pytest.fixture
def gate(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> Gate:
    for each in (gate_module, refusals_module, returning):
        monkeypatch.setattr(each, "requeue_later", lambda message: message.done.append("requeue"))
    return Gate(node)


def test_a_sound_message_is_handed_on_untouched(gate: Gate) -> None:
    message = gate.seal()
    gate.take(message)
    assert (gate.handed_on, message.done, gate.gate.refusals.counts) == ([message], [], {})
    assert [header.experiment_id for header in gate.seen] == [message.headers["id"]]


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "rm"},
        {"task": ["jobqueue.run_experiment"]},
        {"id": 5},
        {"timelimit": "abc"},
        {"timelimit": [1, 1]},
        {"eta": "tomorrow"},
        {"expires": 5},
        {"chain": [{"task": "x"}]},
        {"retries": 3},
    ],
)
def test_headers_that_are_not_a_producers_are_set_aside_without_an_answer(gate: Gate, changes: dict[str, Any]) -> None:
    message = gate.seal()
    message.headers |= changes
    gate.take(message)
    assert (gate.handed_on, [reason for reason, _ in gate.set_aside]) == ([], ["BAD_ENVELOPE"])
    assert gate.node.reports() == []
    assert gate.gate.refusals.counts == {"BAD_ENVELOPE": 1}


@pytest.mark.parametrize("headers", [None, [], "text"])
def test_a_message_without_headers_is_set_aside(gate: Gate, headers: Any) -> None:
    message = gate.seal()
    message.headers = headers
    gate.take(message)
    assert [reason for reason, _ in gate.set_aside] == ["BAD_ENVELOPE"]


def test_a_stranger_is_dropped_counted_and_not_answered(gate: Gate, tmp_path: Any) -> None:
    ensure_laptop_keys(tmp_path / "stranger")
    message = gate.seal(keys=KeyRing(tmp_path / "stranger"))
    gate.take(message)
    assert (message.done, gate.set_aside, gate.handed_on) == (["ack"], [], [])
    assert gate.gate.refusals.counts == {"UNTRUSTED": 1}
    assert gate.node.reports() == []


@pytest.mark.security_case("clock skewed sender")
@pytest.mark.parametrize("ahead", [timedelta(seconds=90), timedelta(hours=1)])
def test_what_a_sender_sends_from_the_future_is_put_off_with_an_alarm(
    gate: Gate, ahead: timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    """A sender's clock is an hour ahead: each of its messages seems to be from the future.

    Refused: for now; they come back when their time has come, and none is lost or counted as an attack.
    Evidence: each message is deferred, never set aside, and the log has one warning for all, which names the clocks.
    """
    spec = parse_spec({"image": "any:1", "command": ["true"]})
    gate.gate.refusals._clock = lambda: 0.0  # all of it within one second
    for _ in range(3):
        submitted_at = datetime.now(UTC) + ahead
        header = Header(
            experiment_id=make_experiment_id(),
            queue=gate.node.queue,
            project=spec.project,
            resources=spec.resources,
            submitted_at=submitted_at,
            expires_at=submitted_at + timedelta(hours=1),
        )
        body = seal(spec, header, keys=gate.site.keys)
        gate.take(Message(body, header.experiment_id, queue=gate.node.queue))
    assert (gate.handed_on, gate.set_aside, gate.gate.refusals.counts) == ([], [], {})
    assert len(gate.deferred) == 3
    alarms = [record for record in caplog.records if record.getMessage() == "delivery.early"]
    assert len(alarms) == 1


def test_a_message_for_another_queue_is_dropped(gate: Gate) -> None:
    message = gate.seal()
    message.delivery_info = {"routing_key": "another_cpu"}
    gate.take(message)
    assert (message.done, gate.gate.refusals.counts) == (["ack"], {"UNTRUSTED": 1})


def test_a_strangers_envelope_under_another_id_is_set_aside_and_ends_nothing(gate: Gate) -> None:
    message = gate.seal()
    message.headers["id"] = make_experiment_id()
    gate.take(message)
    assert [reason for reason, _ in gate.set_aside] == ["BAD_ENVELOPE"]
    assert gate.node.reports() == []


def test_a_message_is_given_back_when_nobody_is_trusted_any_more(gate: Gate) -> None:
    message = gate.seal()
    for trusted in (gate.site.keys.folder / "trusted").iterdir():
        trusted.unlink()
    gate.site.keys._trusted._looked_at = float("-inf")
    gate.take(message)
    assert (message.done, gate.gate.refusals.counts) == (["requeue"], {})


def test_a_sound_message_for_which_there_is_no_place_goes_back(gate: Gate) -> None:
    gate.has_place = False
    message = gate.seal()
    gate.take(message)
    assert (gate.handed_on, gate.refused_for_want_of_a_place) == ([], [message])


def test_the_nodes_own_trouble_with_its_keys_gives_the_message_back(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise KeyRefused("readable by everybody")

    monkeypatch.setattr(gate_module, "verify", unreadable)
    message = gate.seal()
    gate.take(message)
    assert (message.done, gate.set_aside) == (["requeue"], [])


def test_what_cannot_be_set_aside_now_is_given_back_and_not_answered(gate: Gate) -> None:
    gate.error = BrokerUnavailable("away")
    message = gate.seal()
    message.headers["id"] = make_experiment_id()
    gate.take(message)
    assert message.done == ["requeue"]
    assert gate.node.reports() == []


def test_what_upsets_celery_is_set_aside(gate: Gate) -> None:
    def upset(_message: object) -> None:
        raise TypeError("no")

    gate.consumer._take(gate.seal(), upset)
    assert gate.set_aside == [("BAD_ENVELOPE", "TypeError")]


@pytest.mark.parametrize("is_dead", [True, False])
def test_a_redelivery_replaces_a_dead_delivery_and_never_a_living_one(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, *, is_dead: bool
) -> None:
    message, adopted = gate.seal(), []
    running = SimpleNamespace(
        id=message.headers["id"],
        acknowledged=False,
        message=SimpleNamespace(body=message.body, channel=SimpleNamespace(closed=is_dead)),
        adopt=adopted.append,
    )
    monkeypatch.setattr(module, "active_requests", [running])
    monkeypatch.setattr(module, "reserved_requests", [])
    gate.take(message)
    assert (adopted, gate.handed_on) == (([message], []) if is_dead else ([], [message]))


def test_refusals_are_all_counted_and_logged_once_a_second(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        for _ in range(50):
            message = gate.seal()
            message.headers["task"] = "rm"
            gate.take(message)
    assert gate.gate.refusals.counts.total() == 50
    assert len([record for record in caplog.records if record.message == "delivery.refused"]) <= 3


def test_nothing_of_celerys_own_state_is_left_by_these_tests() -> None:
    assert (list(worker_state.active_requests), list(worker_state.reserved_requests)) == ([], [])


def test_a_message_from_the_future_is_put_off(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    class Past(datetime):
        """A clock of this node that is an hour late."""

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz or UTC) - timedelta(hours=1)

    message = gate.seal()
    monkeypatch.setattr(gate_module, "datetime", Past)
    gate.take(message)
    assert (gate.set_aside, gate.deferred) == ([], [timedelta(minutes=1)])
    assert gate.was_served()


def test_what_upsets_the_check_comes_back_and_is_set_aside_in_the_end(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upset(*_: object, **__: object) -> None:
        raise OverflowError("no")

    monkeypatch.setattr(gate_module, "verify", upset)
    monkeypatch.setattr(module.CeleryConsumer, "create_task_handler", lambda _self: gate.handed_on.append)
    on_message, message = gate.consumer.create_task_handler(), gate.seal()
    for _ in range(2):
        on_message(message)
        on_message(gate.seal())
    assert (message.done, gate.set_aside) == (["requeue", "requeue"], [])
    on_message(message)
    assert gate.set_aside == [("BAD_ENVELOPE", "it could not be examined")]


def test_no_trouble_with_a_message_leaves_the_check(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.CeleryConsumer, "create_task_handler", lambda _self: gate.handed_on.append)
    gate.error = TypeError("no")
    message = gate.seal()
    message.headers["task"] = "rm"
    for _ in range(4):
        gate.consumer.create_task_handler()(message)
    assert gate.handed_on == []


def test_a_worker_that_was_told_to_stop_starts_nothing_more(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[list[str]] = []
    monkeypatch.setattr(module.CeleryConsumer, "stop", lambda _self: stopped.append(list(message.done)))
    monkeypatch.setattr(worker_state, "should_stop", 0)
    message = gate.seal()
    gate.take(message)
    assert gate.handed_on == []
    assert not gate.consumer._has_place()
    gate.consumer.stop()
    assert (stopped, message.done) == ([[]], ["requeue"]), "it would come back to what still consumes"


@pytest.mark.parametrize(("busy", "tried", "has_place"), [(0, 9, True), (3, 9, True), (4, 9, False), (1, 0, False)])
def test_a_message_has_a_place_while_fewer_run_than_may_and_no_start_is_on_trial(
    gate: Gate, busy: int, tried: int, *, has_place: bool
) -> None:
    node = node_of(gate.consumer.app)
    vars(node).update(adopted=0, still_runs=9, may_try=lambda taken: taken <= tried)
    gate.site.takes_more = True
    gate.consumer.pool = SimpleNamespace(busy=busy, limit=4)
    assert gate.consumer._has_place() is has_place


def test_a_connection_that_ended_within_a_callback_is_told_to_celery(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    monkeypatch.setattr(gate.consumer, "_rearrange", lambda: looks.append("resume"))
    gate.consumer.connection = SimpleNamespace(connected=True)
    gate.consumer._look_for_queues()
    assert looks == ["resume"]
    gate.consumer.connection = SimpleNamespace(connected=False)
    with pytest.raises(OSError, match="has ended") as raised:
        gate.consumer._look_for_queues()
    assert isinstance(raised.value, Connection("amqp://").connection_errors)


def test_who_has_a_place_again_takes_nothing_from_what_was_paused_meanwhile(gate: Gate) -> None:
    gate.scout.paused = frozenset({gate.node.queue})
    gate.consumer._rearrange()
    assert gate.closed == {gate.node.queue}


def test_a_queue_whose_message_finds_no_room_has_had_its_turn(gate: Gate) -> None:
    assert not gate.was_served()
    gate.consumer._room = SimpleNamespace(admit=lambda *_: False)  # type: ignore[assignment]
    gate.take(gate.seal())
    assert gate.was_served()


@pytest.mark.parametrize("is_sound", [True, False])
def test_what_is_refused_or_finds_no_room_counts_where_it_went_ahead(gate: Gate, *, is_sound: bool) -> None:
    gate.consumer._room = SimpleNamespace(admit=lambda *_: False)  # type: ignore[assignment]
    first = first_queue(gate.node.queue)
    message = gate.seal() if is_sound else Message(b"no envelope", "exp-1", queue=gate.node.queue)
    message.delivery_info["routing_key"] = first
    gate.take(message)
    assert gate.passed == [(first, "put off" if is_sound else "refused")]


@pytest.mark.parametrize("trouble", [ConsumerCancelled("a_cpu"), NotFound(), ConnectionResetError(), KeyError("tag")])
@pytest.mark.parametrize("has_place", [True, False])
def test_what_is_met_after_a_message_was_handed_on_or_refused_touches_it_no_more(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, trouble: Exception, *, has_place: bool
) -> None:
    monkeypatch.setattr(module.CeleryConsumer, "create_task_handler", lambda _self: gate.handed_on.append)
    gate.trouble, gate.has_place = trouble, has_place
    message = gate.seal()
    gate.consumer.create_task_handler()(message)
    assert gate.handed_on == ([message] if has_place else [])
    assert (message.done, gate.set_aside, gate.gate.refusals.counts) == ([], [], {})
    with pytest.raises(ConnectionError):
        gate.consumer._require_connection()


@pytest.mark.parametrize("trouble", [ConsumerCancelled("a_cpu"), NotFound(), ConnectionResetError()])
def test_a_channel_that_failed_while_queues_changed_is_told_to_celery_even_if_that_was_only_logged(
    gate: Gate, trouble: Exception
) -> None:
    gate.trouble = trouble
    with pytest.raises(ConnectionError):
        gate.consumer._rearrange()
    gate.trouble = None
    with pytest.raises(ConnectionError):
        gate.consumer._look_for_queues()
