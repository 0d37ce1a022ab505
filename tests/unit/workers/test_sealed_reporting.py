"""Reports are sealed to whom an experiment names, by every worker that ever speaks of it."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from services.node import FakeNode

from jobqueue.envelope import Verified
from jobqueue.errors import BrokerUnavailable, Undecryptable
from jobqueue.ids import WorkerId, make_experiment_id
from jobqueue.keys import KeyRing, Reader, Signer, ensure_laptop_keys, make_pair, parse_reporting, trust
from jobqueue.lifecycle import Reason, State
from jobqueue.report import Report
from jobqueue.sealed_report import CONTENT_TYPE, SEALED_CONTENT_TYPE, open_report
from workers.attempt import reporting
from workers.attempt.reporting import Addressee, Outbox, Reporter
from workers.attempt.runtimes.base import Exit
from workers.attempt.runtimes.fake import Script

SOON = timedelta(seconds=20)
SECRET = "loss of the secret model"


@dataclass(frozen=True, kw_only=True)
class Lab:
    """An experimenter with keys of his own, and the node that he is trusted on."""

    node: FakeNode
    keys: KeyRing

    def message(self) -> Verified:
        """Return a message of a new experiment that names his key for reports."""
        message = self.node.message(keys=self.keys)
        self.node.register(message)
        return message

    def sealed(self) -> list[Report]:
        """Return what the node has reported, none of it readable to others."""
        mails = self.node.mails()
        assert {mail.content_type for mail in mails} <= {SEALED_CONTENT_TYPE}
        for mail in mails:
            assert SECRET.encode() not in mail.body
            with pytest.raises(Undecryptable):
                open_report(mail.body, content_type=mail.content_type, queue=self.node.queue, keys=self.node.site.keys)
        heard = [
            open_report(mail.body, content_type=mail.content_type, queue=self.node.queue, keys=self.keys)
            for mail in mails
        ]
        assert {report.signed_by for report in heard} <= {self.node.site.keys.node_signer().public.key_id}
        return heard


@pytest.fixture
def lab(node: FakeNode, tmp_path: Path) -> Lab:
    own = tmp_path / "experimenter"
    ensure_laptop_keys(own)
    for theirs in next(iter(node.site.keys.folder.glob("node"))).glob("*.pub"):
        trust(own, theirs.read_text())
    for private in (own / "node").glob("*.key"):  # he runs no node
        private.with_suffix(".pub").unlink()
        private.unlink()
    make_pair(own, Reader.REPORTING)
    keys = KeyRing(own)
    trust(node.site.keys.folder, keys.sender().public.line)
    return Lab(node=node, keys=keys)


@pytest.mark.security_case("forged report")
def test_every_report_on_an_experiment_is_for_him_who_submitted_it(lab: Lab) -> None:
    """The broker's operator, or another user of the queue, reads what an experiment prints at its end.

    Refused: every report of the attempt, and of a later delivery, is sealed to the key that its message names.
    Evidence: the bytes in the reporting queue, which the node itself cannot open again.
    Red before: reports lay readable in the queue.
    """
    lab.node.runtime.script = Script(output=[("stdout", f"{SECRET}\n".encode())], exit=Exit(code=3))
    message = lab.message()
    lab.node.run(message)
    reports = lab.sealed()
    assert [report.state for report in reports if report.state] == [
        State.PREPARING, State.RUNNING, State.FINALIZING, State.FAILED,
    ]  # fmt: skip
    assert SECRET in str(reports)
    lab.node.run(message)
    (again,) = lab.sealed()
    assert (again.attempt, again.state) == (0, State.FAILED)


def test_what_does_not_open_is_told_to_whom_the_queue_belongs(lab: Lab, tmp_path: Path) -> None:
    line = make_pair(tmp_path / "books", Reader.REPORTING).line
    books = KeyRing(tmp_path / "books")
    trust(lab.node.site.keys.folder, line)
    message = lab.message()
    for private in lab.node.site.keys.folder.glob("node/*.key"):
        if "node-mlkem" in private.read_text():
            private.unlink()
    lab.node.site.keys._node._looked_at = float("-inf")
    lab.node.run(message)
    (mail,) = lab.node.mails()
    told = open_report(mail.body, content_type=mail.content_type, queue=lab.node.queue, keys=books)
    assert told.reason is Reason.UNDECRYPTABLE


@dataclass
class Post:
    """A broker's port that is away until somebody says otherwise."""

    sent: list[tuple[str, bytes]] = field(default_factory=list)
    is_away: bool = True

    def send(self, queue: str, body: bytes, *, content_type: str, **_: object) -> bool:
        if self.is_away:
            raise BrokerUnavailable("away")
        self.sent.append((content_type, body))
        return True


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Post:
    monkeypatch.setattr(reporting, "RETRY_EVERY", timedelta(milliseconds=10))
    return Post()


def say_one(outbox: Outbox, line: str = "") -> None:
    to = Addressee(queue="q_cpu", reporting_key=parse_reporting(line) if line else None)
    reporter = Reporter(outbox, to=to, experiment_id=make_experiment_id(), worker_id=WorkerId("cpu@host"), attempt=1)
    reporter.logged(SECRET)


def test_what_a_killed_worker_left_is_sealed_by_its_next_process(post: Post, tmp_path: Path) -> None:
    line = make_pair(tmp_path / "experimenter", Reader.REPORTING).line
    make_pair(tmp_path / "node", Signer.NODE)
    keys = KeyRing(tmp_path / "node")
    first = Outbox(post, tmp_path / "spool", keys=keys)  # type: ignore[arg-type]
    say_one(first, line)
    first.close(timedelta(0))
    first._thread.join(SOON.total_seconds())
    first.close(timedelta(0))
    post.is_away = False
    second = Outbox(post, tmp_path / "spool", keys=keys)  # type: ignore[arg-type]
    assert second.flush(SOON)
    second.close(SOON)
    ((content_type, body),) = post.sent
    assert content_type == SEALED_CONTENT_TYPE
    assert SECRET.encode() not in body
    heard = open_report(body, content_type=content_type, queue="q_cpu", keys=KeyRing(tmp_path / "experimenter"))
    assert SECRET in str(heard)


def test_no_report_leaves_while_a_key_is_in_disorder_and_all_do_afterwards(post: Post, tmp_path: Path) -> None:
    post.is_away = False
    make_pair(tmp_path / "node", Signer.NODE)
    clock = Clock()
    keys = KeyRing(tmp_path / "node", clock=clock)
    private = next((tmp_path / "node").glob("node/*.key"))
    private.chmod(0o644)
    outbox = Outbox(post, tmp_path / "spool", keys=keys)  # type: ignore[arg-type]
    say_one(outbox)
    assert not outbox.flush(timedelta(milliseconds=300))
    assert post.sent == []
    private.chmod(0o600)
    assert outbox.flush(SOON)
    outbox.close(SOON)
    ((content_type, body),) = post.sent
    assert open_report(body, content_type=content_type, queue="q_cpu", keys=keys).signed_by
    assert content_type == CONTENT_TYPE


class Clock:
    """Seconds that grow with each look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 10
        return self.now
