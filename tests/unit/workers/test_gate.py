"""What the check of every message lets in, and what a flood of what it refuses leaves behind."""

import json
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from kombu.transport import virtual
from services.garbage import KINDS, headers
from services.node import FakeNode

from jobqueue.application import CONTENT_TYPE
from jobqueue.brokers.base import Depth, missing_queue
from jobqueue.brokers.copies import as_message, dead_headers, pack
from jobqueue.envelope import MAX_ENVELOPE_BYTES
from jobqueue.errors import BrokerUnavailable
from workers.delivery.ends import Ends
from workers.delivery.gate import REPEATED, Gate
from workers.delivery.refusals import MOST_DEAD_LETTERS, MOST_DEAD_LETTERS_A_SECOND, Refusals
from workers.delivery.turns import Turns

MUTATIONS = 10_000
WORDS: tuple[Any, ...] = (None, True, -1, 2**70, 0.5, "", "x", "\ud800", b"\xff".hex(), [], {}, [[]], {"a": {}})


class Wire:
    """The channel of a delivery: what kombu asks of it, and what was done."""

    no_ack_consumers = None
    codecs = virtual.Channel.codecs

    def __init__(self) -> None:
        self.acknowledged = 0

    def decode_body(self, body: str, encoding: str | None = None) -> Any:
        return self.codecs[encoding].decode(body) if encoding in self.codecs else body

    def basic_ack(self, _tag: str, **_: object) -> None:
        self.acknowledged += 1


class World:
    """A gate, the time, and the dead-letter queue of one broker."""

    def __init__(self, node: FakeNode) -> None:
        self.node, self.now = node, 0.0
        self.wire: Any = Wire()
        self.dead: list[str] = []
        site = SimpleNamespace(
            keys=node.site.keys, outbox=node.site.outbox, worker_id=node.site.worker_id, deliveries=self
        )
        broker = SimpleNamespace(queues=SimpleNamespace(depth=lambda _queue: Depth(ready=len(self.dead))))
        worker: Any = SimpleNamespace(site=site, broker=broker)
        self.ends = Ends()
        self.gate = Gate(worker, turns=Turns(), ends=self.ends, refusals=Refusals(worker, clock=lambda: self.now))

    def dead_letter(self, message: Any, *, queue: str, reason: str, detail: str) -> None:
        json.dumps(dead_headers(message.headers, reason=reason, detail=detail))
        self.dead.append(detail)
        message.ack()

    def receive(self, raw: bytes) -> Any:
        """Return what lies in a queue as a transport hands it on."""
        return virtual.Message(as_message(raw, queue=self.node.queue, tag="1"), channel=self.wire)

    def make(self, body: bytes, *, content_type: str = CONTENT_TYPE, **changes: object) -> Any:
        payload = pack(self.node.queue, body, content_type=content_type, headers=headers(**changes))
        return self.receive(json.dumps(payload).encode())


@pytest.fixture
def world(node: FakeNode) -> World:
    return World(node)


@pytest.mark.security_case("malformed messages")
def test_no_mutation_of_a_message_upsets_the_check(world: World) -> None:
    """10,000 changes of one sound message: bits, pieces, headers, properties, one or several at a time.

    Refused: each one that says anything else than the original is set aside or dropped; the check never fails.
    Evidence: no exception, what was let in has the original's body, and the counts add up to 10,000.
    """
    body, header = world.node.seal()
    sound = pack(world.node.queue, body, content_type=CONTENT_TYPE, headers=headers(id=header.experiment_id))
    let_in = 0
    for raw in mutations(json.dumps(sound).encode(), sound):
        world.now += 1 / MOST_DEAD_LETTERS_A_SECOND
        message = world.receive(raw)
        verified = world.gate.let_in(message)
        let_in += verified is not None
        assert verified is None or (verified.message, message.headers["id"]) == (body, header.experiment_id)
    assert world.gate.refusals.counts.total() + let_in == MUTATIONS
    assert 0 < let_in < MUTATIONS / 2
    assert len(world.dead) <= MOST_DEAD_LETTERS


def mutations(raw: bytes, sound: dict[str, Any]) -> Iterator[bytes]:
    chance = random.Random(5)
    for number in range(MUTATIONS):
        if number % 2:
            yield _changed_bytes(raw, chance)
        else:
            yield json.dumps(_changed_fields(sound, chance)).encode()


def _changed_bytes(raw: bytes, chance: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 5))):
        at, until = sorted(chance.choices(range(len(changed) + 1), k=2))
        match chance.randrange(4):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at : min(until, at + 40)]
            case 2:
                changed[at:at] = changed[at : at + 40]
            case _:
                changed[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(changed)


def _changed_fields(sound: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    changed = json.loads(json.dumps(sound))
    for _ in range(chance.choice((1, 1, 2))):
        part = chance.choice([changed, changed["headers"] or {}, changed["properties"] or {}])
        if isinstance(part, dict) and part:
            part[chance.choice([*part, "compression", "eta", "chain", "x"])] = chance.choice(WORDS)
        changed.setdefault("headers", {})
        changed.setdefault("properties", {})
    return dict(changed)


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        length, prefix = len(content), b"\x32"
        while length > 0x7F:
            prefix, length = prefix + bytes([length & 0x7F | 0x80]), length >> 7
        content = prefix + bytes([length]) + content
    return content


BODIES: dict[str, Callable[[], tuple[bytes, str]]] = {
    "too large by a byte": lambda: (bytes(MAX_ENVELOPE_BYTES + 1), f"{MAX_ENVELOPE_BYTES + 1} bytes long"),
    "protobuf with 10,000 nested fields": lambda: (nested(10_000), "SealedEnvelope|canonical|version"),
    "JSON": lambda: (b'[["x"], {}, {}]', "SealedEnvelope|canonical"),
    "nothing": lambda: (b"", "version|no bytes"),
}


@pytest.mark.security_case("oversize by 1 byte, protobuf with 10,000 nested fields, JSON body to the task")
@pytest.mark.parametrize("name", BODIES)
def test_what_is_no_envelope_is_set_aside(world: World, name: str) -> None:
    """A body that is one byte too large, nested 10,000 deep, JSON, or nothing, under a producer's headers.

    Refused: set aside as BAD_ENVELOPE, counted, nobody is answered.
    Evidence: the reason of the dead letter, and no report.
    """
    body, said = BODIES[name]()
    assert world.gate.let_in(world.make(body)) is None
    assert [detail for detail in world.dead if any(word in detail for word in said.split("|"))], world.dead
    assert world.node.reports() == []


UNWANTED: dict[str, dict[str, Any]] = {
    "callbacks": {"callbacks": [{"task": "x"}]},
    "errbacks": {"errbacks": [{"task": "x"}]},
    "a chain": {"chain": [{"task": "x"}]},
    "a chord": {"chord": {"task": "x"}},
    "a group": {"group": "x"},
    "a time to start": {"eta": "2030-01-01T00:00:00"},
    "a time to expire": {"expires": 1},
    "a time limit": {"timelimit": [1, 1]},
    "retries": {"retries": 2},
    "1,000 fields": {f"x{number}": number for number in range(1000)},
    "a bomb": {"compression": "application/x-lzma"},
}


@pytest.mark.security_case("callbacks, chain, chord, reply_to, eta, expires; zip bomb")
@pytest.mark.parametrize("name", UNWANTED)
def test_headers_that_ask_for_more_than_a_run_are_set_aside(world: World, name: str) -> None:
    """A sound envelope under headers that ask Celery to call, chain, wait, retry, unpack, or to read a thousand fields.

    Refused: set aside as BAD_ENVELOPE, however well it is signed.
    Evidence: one dead letter, nothing is let in, and no report.
    """
    body, header = world.node.seal()
    assert world.gate.let_in(world.make(body, id=header.experiment_id, **UNWANTED[name])) is None
    assert (len(world.dead), world.node.reports()) == (1, [])


@pytest.mark.security_case("pickled body: the content type of a sound envelope")
@pytest.mark.parametrize("kind", ["application/x-python-serialize", "application/x-yaml", "application/json", "", "x"])
def test_a_sound_envelope_under_another_content_type_is_set_aside(world: World, kind: str) -> None:
    """Whoever carries a sound envelope changes what it is to be decoded as: pickle, YAML, JSON, anything.

    Refused: set aside as BAD_ENVELOPE, before anything of it is decoded.
    Evidence: one dead letter that says so, nothing is let in, and no report; the same body is let in under its own.
    """
    body, header = world.node.seal()
    assert world.gate.let_in(world.make(body, id=header.experiment_id, content_type=kind)) is None
    assert [detail for detail in world.dead if "content type" in detail], world.dead
    assert world.node.reports() == []
    assert world.gate.let_in(world.make(body, id=header.experiment_id)) is not None


@pytest.mark.security_case("replayed after success")
def test_what_has_ended_here_is_dropped_when_it_comes_again(world: World) -> None:
    """The bytes of a message are sent again, many times, after its experiment has ended.

    Refused: the worker that ended it drops them without asking the registry, counts them, and reports nothing.
    Evidence: the count; another message of the same sender is let in.
    Red before: each copy was asked about, and each was reported.
    """
    body, header = world.node.seal()
    assert world.gate.let_in(world.make(body, id=header.experiment_id))
    world.ends.note(body)
    for _ in range(100):
        assert world.gate.let_in(world.make(body, id=header.experiment_id)) is None
    assert world.gate.is_refused(world.make(body, id=header.experiment_id))
    assert world.gate.refusals.counts == {REPEATED: 101}
    assert (world.wire.acknowledged, world.dead, world.node.reports()) == (100, [], [])
    body, header = world.node.seal()
    assert world.gate.let_in(world.make(body, id=header.experiment_id))


def test_where_the_broker_does_not_tell_how_many_dead_letters_there_are_a_few_are_set_aside(world: World) -> None:
    def silent(_queue: str) -> Depth:
        raise BrokerUnavailable("not for this user")

    world.gate.refusals._node.broker.queues.depth = silent  # type: ignore[method-assign,assignment]
    for _ in range(100):
        assert world.gate.let_in(world.make(b"x")) is None
    assert (len(world.dead), world.gate.refusals.dropped) == (10, 90)


@pytest.mark.security_case("garbage messages where nothing can be set aside")
def test_what_can_be_set_aside_nowhere_is_dropped_counted_and_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Garbage comes to a request queue that somebody has made without its dead-letter queue.

    Refused: dropped and counted; a line a second says how to make the queue.
    Evidence: nothing comes back, the counts, the lines.
    Red before: each message was given back each second, for ever, and kept a worker from what lay behind it.
    """

    def missing(queue: str) -> Depth:
        raise missing_queue(queue)

    world.gate.refusals._node.broker.queues.depth = missing  # type: ignore[method-assign,assignment]
    for _ in range(50):
        assert world.gate.let_in(world.make(b"x")) is None
        assert world.gate.is_refused(world.make(b"x"))
    assert (world.gate.refusals.dropped, world.gate.refusals.counts) == (100, {"BAD_ENVELOPE": 100})
    assert (world.wire.acknowledged, world.dead) == (50, [])
    (told,) = [record for record in caplog.records if record.message == "dead_letters.no_queue"]
    assert told.__dict__["hint"] == f"`jobqueue queues create {world.node.queue}` makes it"


@pytest.mark.security_case("100,000 garbage messages in a row")
@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_a_flood_leaves_a_bounded_number_of_dead_letters_and_lines(
    world: World, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """100,000 messages of strangers in a row: random bytes, unsigned, wrongly signed, of an unknown sender or type.

    Refused: dropped or, as far as there is room, set aside; one log line a second says how many.
    Evidence: every one is counted, 1,000 dead letters at most, a line a second, no report, memory flat.
    Red before: what is no envelope was copied into the dead-letter queue without a bound.
    """
    sound, _ = world.node.seal()
    kinds = list(KINDS.values())
    before = psutil.Process().memory_info().rss
    with caplog.at_level("WARNING"):
        for number in range(count):
            world.now = number / 1000
            made = kinds[number % len(kinds)](sound)
            message = world.make(made.body, content_type=made.content_type)
            if not world.gate.is_refused(message):
                assert world.gate.let_in(message) is None
            if number == count // 2:
                before = psutil.Process().memory_info().rss
        world.now += 1
        world.gate.refusals.tell_rest()
    lines = [record for record in caplog.records if record.message == "delivery.refused"]
    assert len(lines) <= count / 1000 + 2
    assert sum(record.__dict__["count"] for record in lines) == world.gate.refusals.counts.total() == count
    assert len(world.dead) <= min(MOST_DEAD_LETTERS, (count / 1000 + 1) * MOST_DEAD_LETTERS_A_SECOND)
    assert world.node.reports() == []
    assert psutil.Process().memory_info().rss - before < 30 * 2**20
