"""How a sender is told that its message is refused: once, briefly, and not often."""

from pathlib import Path

import pytest
from services.node import FakeNode

from jobqueue.errors import BadEnvelope, Untrusted
from jobqueue.keys import KeyRing, Reader, ensure_laptop_keys, make_pair, trust
from jobqueue.lifecycle import Reason
from jobqueue.report import Progress, TaskState
from jobqueue.sealed_report import SEALED_CONTENT_TYPE
from workers.attempt.answers import MOST, WITHIN, Answers, shorten
from workers.attempt.telling import answer

ANSWER_BYTES = 4096


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.security_case("report flood")
@pytest.mark.parametrize("reason", [Reason.UNDECRYPTABLE, Reason.BAD_SPEC, Reason.BAD_ENVELOPE])
def test_a_sender_is_answered_so_often_a_minute(reason: Reason) -> None:
    """A trusted sender, or who sends its messages again, has a node write one report after another by refusals.

    Refused: ten refusals a minute are reported for each sender; the others are counted, and told by the registry alone.
    Evidence: what is admitted by a clock of the test's own, for two senders.
    Red before: every refusal was reported.
    """
    clock = Clock()
    answers = Answers(clock=clock)
    assert [answers.may_tell(reason, "a") for _ in range(MOST + 5)] == [True] * MOST + [False] * 5
    assert answers.may_tell(reason, "b")
    assert answers.withheld == 5
    clock.now += WITHIN.total_seconds() - 1
    assert not answers.may_tell(reason, "a")
    clock.now += 1
    assert answers.may_tell(reason, "a")


def test_every_other_end_is_told_and_who_is_not_trusted_never_is() -> None:
    answers = Answers()
    assert all(answers.may_tell(Reason.EXITED_NONZERO, "a") for _ in range(10 * MOST))
    assert not answers.may_tell(Reason.UNTRUSTED, "a")


def test_only_so_many_senders_are_remembered() -> None:
    answers = Answers()
    for number in range(5000):
        assert answers.may_tell(Reason.BAD_SPEC, str(number))
    assert len(answers._given) <= 1000


def test_who_asks_again_is_remembered_however_many_others_come_and_so_is_who_comes_last() -> None:
    answers = Answers(clock=Clock())
    for _ in range(MOST):
        assert answers.may_tell(Reason.BAD_SPEC, "loud")
    for number in range(1500):
        answers.may_tell(Reason.BAD_SPEC, str(number))
        assert not answers.may_tell(Reason.BAD_SPEC, "loud")
    assert [answers.may_tell(Reason.BAD_SPEC, "new") for _ in range(MOST + 1)] == [True] * MOST + [False]


@pytest.mark.parametrize("sentence", ["x" * 100_000, "\u20ac" * 100_000, "\U0001f600" * 100_000])
def test_an_answer_is_small_though_signed_and_sealed(sentence: str, node: FakeNode, tmp_path: Path) -> None:
    trust(node.site.keys.folder, make_pair(tmp_path / "listener", Reader.REPORTING).line)
    refusal = BadEnvelope(sentence)
    refusal.sender_key_id = "k" * 32
    answer(node.site, refusal, queue=node.queue)
    (mail,) = node.mails()
    assert mail.content_type == SEALED_CONTENT_TYPE
    assert len(mail.body) <= ANSWER_BYTES


def test_a_short_sentence_stays_as_it_is() -> None:
    assert shorten("no such key") == "no such key"


def test_a_message_that_was_signed_and_is_malformed_is_answered(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobqueue.envelope.encode_header", lambda _: b"\xff")
    sealed, _ = node.seal()
    monkeypatch.undo()
    with pytest.raises(BadEnvelope) as refused:
        node.verify(sealed)
    answer(node.site, refused.value, queue=node.queue)
    (report,) = node.reports()
    assert (report.experiment_id, report.attempt, report.state, report.reason) == ("", 0, None, Reason.BAD_ENVELOPE)
    assert isinstance(report.payload, Progress)
    assert report.payload.task_state is TaskState.FAILED


def test_a_message_of_a_stranger_is_never_answered(node: FakeNode, tmp_path: Path) -> None:
    ensure_laptop_keys(tmp_path / "stranger")
    trust(tmp_path / "stranger", node.site.keys.recipient(node.queue).line)
    sealed, _ = node.seal(keys=KeyRing(tmp_path / "stranger"))
    for message in (sealed, sealed[:-1], b"", b"rubbish"):
        with pytest.raises((BadEnvelope, Untrusted)) as refused:
            node.verify(message)
        answer(node.site, refused.value, queue=node.queue)
    assert node.reports() == []


def test_a_message_that_does_not_open_is_answered_once_and_with_nothing_of_what_it_says(
    node: FakeNode, tmp_path: Path
) -> None:
    foreign = tmp_path / "sender"
    ensure_laptop_keys(foreign)
    trust(node.site.keys.folder, KeyRing(foreign).sender().public.line)
    sealed, _ = node.seal(keys=KeyRing(foreign))
    message = node.verify(sealed)
    node.register(message)
    node.run(message)
    (report,) = node.reports()
    assert report.reason is Reason.UNDECRYPTABLE
