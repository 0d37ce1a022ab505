"""Reports that somebody else has written, altered, moved or repeated: refused, counted, and in nobody's way."""

import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.codec import encode_report
from jobqueue.errors import KeyRefused
from jobqueue.ids import WorkerId, make_experiment_id
from jobqueue.keys import KeyRing, Reader, Signer, make_pair, revoke, trust
from jobqueue.lifecycle import Reason, State
from jobqueue.report import Progress, Report, TaskState
from jobqueue.routing import reporting_queue
from jobqueue.sealed_report import CONTENT_TYPE, MAX_REPORT_BYTES, SEALED_CONTENT_TYPE, close_report
from producers.inbox import Inbox
from producers.listener import listen

EXPERIMENT = make_experiment_id()


def make_report(queue: str, sequence: int = 0, *, text: str = "") -> Report:
    return Report(
        at=datetime(2026, 1, 1, tzinfo=UTC),
        experiment_id=EXPERIMENT,
        worker_id=WorkerId("gpu0@host"),
        sequence=sequence,
        attempt=1,
        token=7,
        payload=Progress(task_state=TaskState.SUCCESS, json=text),
        state=State.SUCCEEDED,
        reason=Reason.EXITED_ZERO,
        queue=queue,
    )


@dataclass(frozen=True, kw_only=True)
class Hall:
    """A node that reports on a queue, and whoever listens there.

    Attributes:
        node, listener, stranger: their folders of keys.
        told: what the listener was told beside the reports.
    """

    broker: Broker
    queue: str
    node: Path
    listener: Path
    stranger: Path
    told: list[str] = field(default_factory=list)

    def close(self, report: Report, *, keys: Path | None = None, queue: str = "") -> tuple[str, bytes]:
        """Return a report as a node with these keys sends it."""
        return close_report(encode_report(report), queue=queue or self.queue, keys=KeyRing(keys or self.node))

    def good(self, sequence: int = 0) -> tuple[str, bytes]:
        """Return what the node says of this queue."""
        return self.close(make_report(self.queue, sequence))

    def send(self, *reports: tuple[str, bytes], queue: str = "") -> None:
        """Put them into the reporting queue."""
        for content_type, body in reports:
            assert self.broker.post.send(reporting_queue(queue or self.queue), body, content_type=content_type)

    def hear(self, *, until: int) -> list[Report]:
        """Return what the listener is given, up to the report of that number."""
        stop, heard = threading.Event(), []

        def callback(report: Report) -> None:
            heard.append(report)
            if report.sequence == until:
                stop.set()

        queues = [reporting_queue(self.queue)]
        listen(self.broker, queues, callback, keys=KeyRing(self.listener), stop=stop, tell=self.told.append)
        return heard

    def sequences(self, *, until: int) -> list[int]:
        """Return their numbers; each is signed by the node."""
        heard = self.hear(until=until)
        signer = KeyRing(self.node).node_signer().public.key_id
        assert {report.signed_by for report in heard} == {signer}
        return [report.sequence for report in heard]


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    queue = f"q{uuid4().hex[:10]}_cpu"
    folders = [tmp_path / name for name in ("node", "listener", "stranger")]
    with closing(open_broker("memory://", lease=timedelta(seconds=1))) as broker:
        broker.queues.create_plain(reporting_queue(queue))
        opened = Hall(broker=broker, queue=queue, node=folders[0], listener=folders[1], stranger=folders[2])
        trust(opened.listener, make_pair(opened.node, Signer.NODE).line)
        yield opened
        broker.queues.delete(reporting_queue(queue))


@pytest.mark.security_case("forged report")
@pytest.mark.parametrize("signed", ["by nobody", "by a stranger", "by a stranger under the node's name"])
def test_a_report_that_no_trusted_node_has_signed_is_refused(hall: Hall, signed: str) -> None:
    """Somebody who may write to the broker reports that an experiment has succeeded.

    Refused: not handed on, counted, told once; the node's own report behind it is.
    Evidence: what the listener's function is given, and the count of refusals by code.
    Red before: reports were not signed, and every one was handed on.
    """
    make_pair(hall.stranger, Signer.NODE)
    forged = make_report(hall.queue, 0, text='{"forged": true}')
    content_type, body = hall.close(forged, keys=hall.stranger)
    if signed == "by nobody":
        body = encode_report(forged)
    elif signed.endswith("name"):
        own, nodes = (KeyRing(folder).node_signer().public.key_id.encode() for folder in (hall.stranger, hall.node))
        assert own in body
        body = body.replace(own, nodes)
    hall.send((content_type, body), hall.good(1))
    assert hall.sequences(until=1) == [1]
    told = hall.told[0]
    assert {"by nobody": "not signed by any", "by a stranger": "is not trusted to report"}.get(signed, "hold") in told


@pytest.mark.security_case("forged report")
def test_a_report_with_one_bit_changed_is_refused(hall: Hall) -> None:
    """One bit of a node's report is changed on its way, at every place in turn.

    Refused: each of them, counted; the unchanged one is handed on.
    Evidence: the count of refusals, as many as the report has bytes.
    Red before: reports were not signed, and every change was handed on that was a report still.
    """
    content_type, body = hall.good()
    changed = [bytes([*body[:place], body[place] ^ 1, *body[place + 1 :]]) for place in range(len(body))]
    hall.send(*((content_type, each) for each in changed), (content_type, body))
    inbox = Inbox(hall.broker, [reporting_queue(hall.queue)], keys=KeyRing(hall.listener))
    assert next(iter(inbox)) == replace(
        make_report(hall.queue), signed_by=KeyRing(hall.node).node_signer().public.key_id
    )
    assert inbox.refused.total() == len(body)


@pytest.mark.security_case("forged report")
def test_the_signature_of_one_report_makes_no_other_one_true(hall: Hall) -> None:
    """A node's signature is put under other words, and further words are put behind it or before it.

    Refused: each of them; only what was signed, whole, is handed on.
    Evidence: what the listener's function is given.
    Red before: reports were not signed.
    """
    content_type, body = hall.good()
    lie = encode_report(make_report(hall.queue, 0, text='{"lie": true}'))
    signature = body[-67:]
    hall.send(
        *((content_type, each) for each in (lie + signature, body + lie, lie + body, body + signature, body[:-64]))
    )
    hall.send(hall.good(1))
    assert hall.sequences(until=1) == [1]


@pytest.mark.security_case("forged report")
@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_report_on_another_queue_is_refused(hall: Hall, is_sealed: bool) -> None:  # noqa: FBT001
    """A sound report on one queue is moved to the reports of another, on which the same node may report as well.

    Refused: the queue is signed, and bound into the sealing.
    Evidence: what the listener's function is given.
    Red before: reports named no queue.
    """
    if is_sealed:
        trust(hall.node, make_pair(hall.listener, Reader.REPORTING).line)
    other = "other_cpu"
    hall.send(hall.close(make_report(other), queue=other))
    hall.send(hall.close(make_report(other)))  # sealed for this queue, by somebody who knows its public key
    hall.send(hall.good(1))
    assert hall.sequences(until=1) == [1]


@pytest.mark.security_case("forged report")
def test_a_node_reports_on_no_queue_that_has_nodes_of_its_own(hall: Hall) -> None:
    """A node that is trusted for all queues reports on one whose prefix names another node; so does a revoked one.

    Refused: the longest prefix counts alone, and a revoked key counts no more.
    Evidence: what the listener's function is given.
    Red before: reports were not signed.
    """
    own = make_pair(hall.stranger, Signer.NODE)
    trust(hall.listener, own.line, queue_prefix=hall.queue[:4])
    hall.send(hall.good(0), hall.close(make_report(hall.queue, 1), keys=hall.stranger))
    assert [report.sequence for report in hall.hear(until=1)] == [1]
    revoke(hall.listener, own.key_id)
    hall.send(hall.close(make_report(hall.queue, 2), keys=hall.stranger), hall.good(3))
    assert hall.sequences(until=3) == [3]


@pytest.mark.security_case("forged report")
def test_a_repeated_report_is_not_handed_on_twice_and_a_missing_one_is_told(hall: Hall) -> None:
    """Whoever carries the reports sends one again, and keeps others back.

    Refused: what comes again is dropped, among 10,000 attempts; a gap is told as soon as a later number comes.
    Evidence: what the listener's function is given, and what the listener is told.
    Red before: a gap was told nobody.
    """
    first, late = hall.good(0), hall.good(2)
    hall.send(first, first, hall.good(1), first, hall.good(5), late, late, hall.good(6))
    assert hall.sequences(until=6) == [0, 1, 5, 2, 6]
    assert [told for told in hall.told if "reports 2 to 4 of" in told] == hall.told


@pytest.mark.security_case("forged report")
def test_without_a_trusted_node_a_report_is_signed_by_nobody(hall: Hall) -> None:
    """Somebody writes a report where the listener trusts no node, so that nobody can tell.

    Refused: handed on, but as signed by nobody, whatever it claims.
    Evidence: `Report.signed_by`; `jobqueue reports listen` writes `[not verified]` beside it.
    """
    make_pair(hall.stranger, Signer.NODE)
    revoke(hall.listener, KeyRing(hall.node).node_signer().public.key_id)
    hall.send(hall.close(make_report(hall.queue, 0), keys=hall.stranger), hall.good(1))
    assert [report.signed_by for report in hall.hear(until=1)] == [None, None]


@pytest.mark.security_case("forged report")
def test_a_sealed_report_is_read_by_its_listener_alone(hall: Hall) -> None:
    """Somebody reads along at the broker, and hands a report sealed to somebody else to a listener.

    Refused: nothing of it can be read, and who has not the key refuses it, whatever bit was changed.
    Evidence: the bytes in the queue, and the refusals by code.
    Red before: reports lay readable in the queue.
    """
    trust(hall.node, make_pair(hall.listener, Reader.REPORTING).line)
    secret = '{"loss": 0.1234567}'
    content_type, body = hall.close(make_report(hall.queue, 0, text=secret))
    assert content_type == SEALED_CONTENT_TYPE
    for part in (secret, EXPERIMENT, "gpu0@host", KeyRing(hall.node).node_signer().public.key_id):
        assert part.encode() not in body
    hall.send((content_type, body))
    assert [report.payload for report in hall.hear(until=0)] == [make_report(hall.queue, text=secret).payload]

    changed = [bytes([*body[:place], body[place] ^ 1, *body[place + 1 :]]) for place in range(0, len(body), 7)]
    other = make_pair(hall.stranger, Reader.REPORTING)
    foreign = close_report(
        encode_report(make_report(hall.queue)), queue=hall.queue, keys=KeyRing(hall.node), reporting_key=other
    )
    hall.send(*((content_type, each) for each in changed), foreign, hall.good(1))
    inbox = Inbox(hall.broker, [reporting_queue(hall.queue)], keys=KeyRing(hall.listener))
    assert next(iter(inbox)).sequence == 1
    assert inbox.refused.total() == len(changed) + 1
    assert inbox.refused["undecryptable"] > len(changed) * 0.9


@pytest.mark.security_case("forged report")
def test_sealing_is_no_signature(hall: Hall) -> None:
    """A stranger seals a report of his own to the listener's public key, unsigned or signed by himself.

    Refused: a sealed report needs a trusted node's signature inside.
    Evidence: what the listener's function is given.
    Red before: there were no sealed reports.
    """
    line = make_pair(hall.listener, Reader.REPORTING).line
    for folder in (hall.node, hall.stranger):
        trust(folder, line)
    hall.send(hall.close(make_report(hall.queue, 0), keys=hall.stranger))
    make_pair(hall.stranger, Signer.NODE)
    hall.send(hall.close(make_report(hall.queue, 1), keys=hall.stranger), hall.good(2))
    assert hall.sequences(until=2) == [2]


@pytest.mark.security_case("forged report")
@pytest.mark.parametrize(
    "body",
    [
        bytes(MAX_REPORT_BYTES + 1),
        b"\x9a\x06" * 100_000,
        b"\x52" + b"\x80" * 20,
        b"{}",
        b"\x80\x04\x95",
        b"",
    ],
    ids=["a byte too large", "fields without end", "a length without end", "JSON", "a pickle", "nothing"],
)
@pytest.mark.parametrize("content_type", [CONTENT_TYPE, SEALED_CONTENT_TYPE, "application/x-python-serialize", ""])
def test_rubbish_is_refused_whatever_it_is_called(hall: Hall, content_type: str, body: bytes) -> None:
    """Rubbish lies in a reporting queue: too large, endless, or of another form.

    Refused: by its size before it is parsed, by its form, or because nobody has signed it; nothing is unpickled.
    Evidence: the report behind it is handed on, and one refusal is counted.
    """
    hall.send((content_type, body), hall.good(1))
    inbox = Inbox(hall.broker, [reporting_queue(hall.queue)], keys=KeyRing(hall.listener))
    assert next(iter(inbox)).sequence == 1
    assert inbox.refused.total() == 1


@pytest.mark.security_case("key file world-readable")
def test_a_listener_whose_keys_others_can_replace_reads_nothing(hall: Hall) -> None:
    """The keys that a listener trusts can be replaced by others on its machine.

    Refused: it reads nothing, says which file, and the report waits in its queue.
    Evidence: the error, and the report that comes once the file's mode is mended.
    """
    hall.send(hall.good())
    path = next(hall.listener.glob("node/*.pub"))
    path.chmod(0o666)
    with pytest.raises(KeyRefused, match="others can replace"):
        hall.hear(until=0)
    path.chmod(0o644)
    hall.broker.close()
    assert hall.sequences(until=0) == [0]


def flood(hall: Hall, count: int) -> None:
    """Let so many forged reports of several kinds come before a good one, and check what that costs."""
    kinds = _kinds(hall)
    for number in range(count):
        hall.send(kinds[number % len(kinds)])
    hall.send(hall.good(1))
    queues = [reporting_queue(hall.queue)]
    inbox = Inbox(hall.broker, queues, keys=KeyRing(hall.listener), on_refused=hall.told.append)
    tracemalloc.start()
    try:
        assert next(iter(inbox)).sequence == 1
        growth = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert inbox.refused.total() == count
    assert growth < 2**20
    assert len(hall.told) < 10 + count / 100
    assert hall.broker.queues.depth(queues[0]).ready == 0


def _kinds(hall: Hall) -> Sequence[tuple[str, bytes]]:
    make_pair(hall.stranger, Signer.NODE)
    content_type, body = hall.good()
    return [
        (content_type, encode_report(make_report(hall.queue))),
        hall.close(make_report(hall.queue), keys=hall.stranger),
        (content_type, bytes([*body[:-1], body[-1] ^ 1])),
        (SEALED_CONTENT_TYPE, body),
        (content_type, b"\xff" * 100),
    ]


@pytest.mark.security_case("report flood")
def test_a_flood_of_forged_reports_keeps_no_good_one_back(hall: Hall) -> None:
    """Thousands of forged reports of five kinds lie before a good one.

    Refused: each is counted, next to none is told, memory stays as it is, and the good one is handed on.
    Evidence: the count, the memory that Python has allocated meanwhile, and the sentences told.
    Red before: each one was told, and all were handed on.
    """
    flood(hall, 2000)


@pytest.mark.full
@pytest.mark.security_case("report flood")
def test_a_hundred_thousand_forged_reports_keep_no_good_one_back(hall: Hall) -> None:
    """A hundred thousand forged reports of five kinds lie before a good one.

    Refused: each is counted, next to none is told, memory stays as it is, and the good one is handed on.
    Evidence: the count, the memory that Python has allocated meanwhile, and the sentences told.
    Red before: each one was told, and all were handed on.
    """
    flood(hall, 100_000)


@pytest.mark.security_case("report flood")
def test_a_flood_fills_no_queue_of_rubbish(hall: Hall) -> None:
    """Forged reports come by the thousand where somebody has made a queue to keep what was refused.

    Refused: one a second is kept there at most.
    Evidence: the depth of that queue.
    Red before: every one was kept.
    """
    kept = reporting_queue(hall.queue) + "_dead"
    hall.broker.queues.create_plain(kept)
    for _ in range(500):
        hall.send((CONTENT_TYPE, b"\xff"))
    hall.send(hall.good(1))
    assert hall.sequences(until=1) == [1]
    assert 1 <= hall.broker.queues.depth(kept).ready < 100
    hall.broker.queues.delete(kept)


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
def test_what_is_told_of_a_refused_report_drives_no_terminal(hall: Hall) -> None:
    """The names in a forged report hold escape sequences, for the terminal or the log of whoever listens.

    Refused: with the report; in what is told of it nothing is left that acts.
    Evidence: every character of it can be printed.
    """
    content_type, body = hall.close(make_report("\x1b[2J\r\n\x9b31m\u202e"))
    node = KeyRing(hall.node).node_signer().public.key_id.encode()
    hall.send((content_type, body), (content_type, body.replace(node, b"\x1b]0;x\x07" + node[6:])), hall.good(1))
    assert hall.sequences(until=1) == [1]
    assert hall.told
    assert Counter(letter.isprintable() for told in hall.told for letter in told)[False] == 0
