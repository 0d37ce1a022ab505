"""What becomes of a delivery once its task is over, and what revoke and a new delivery mean for it."""

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from billiard.einfo import ExceptionInfo
from celery.worker import state as worker_state

from jobqueue.brokers.base import Depth, missing_queue
from jobqueue.errors import BrokerUnavailable
from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Outcome, Reason, State
from workers.attempt.supervise import Ended
from workers.bootstrap import attach
from workers.delivery import request as module
from workers.delivery import returning
from workers.delivery.disposition import ExperimentEnded, HandedBack, ended
from workers.delivery.ends import Ends
from workers.delivery.refusals import MOST_DEAD_LETTERS, MOST_DEAD_LETTERS_A_SECOND, Refusals
from workers.delivery.request import AFTER_A_FAULT, ExperimentRequest
from workers.delivery.shared import Shared, share, shared_by


class Message:
    """A delivery, and what was done to it."""

    body = b"sealed"

    def __init__(self, name: str = "first") -> None:
        self.name = name
        self.done: list[str] = []
        self.properties = {"delivery_tag": name}

    def ack_log_error(self, *_: object) -> None:
        self.done.append("ack")

    def reject_log_error(self, *_: object) -> None:
        self.done.append("reject")

    def ack(self) -> None:
        self.done.append("ack")

    def requeue(self) -> None:
        self.done.append("requeue")


class Node:
    """A node that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.site = SimpleNamespace(deliveries=self)
        self.broker = SimpleNamespace(queues=self)
        self.dead_before = 0

    def defer(self, message: Message, *, queue: str, delay: timedelta) -> None:
        self._note("defer", message.name, queue, delay)

    def dead_letter(self, message: Message, *, queue: str, reason: str, detail: str) -> None:
        self._note("dead_letter", message.name, queue, reason, detail)

    def depth(self, _queue: str) -> Depth:
        return Depth(ready=self.dead_before)

    def _note(self, *what: Any) -> None:
        if self.error:
            raise self.error
        self.asked.append(what)

    def ask(self, experiment_id: str, reason: Reason) -> None:
        self.asked.append(("ask", experiment_id, reason))

    def redelivered(self, experiment_id: str, properties: object) -> None:
        self.asked.append(("redelivered", experiment_id, properties))


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def message() -> Message:
    return Message()


@pytest.fixture
def request_(node: Node, message: Message, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExperimentRequest]:
    """A request as Celery makes it, without the message that its constructor takes apart."""
    app, worker, scout = SimpleNamespace(), cast("Any", node), cast("Any", None)
    attach(app, worker)
    share(app, Shared(ends=Ends(), refusals=Refusals(worker), scout=scout))
    request = ExperimentRequest.__new__(ExperimentRequest)
    request._app, request._message, request._task = app, message, SimpleNamespace(acks_late=True)
    request.id, request._delivery_info = make_experiment_id(), {"routing_key": "q_cpu"}
    request._on_ack, request._on_reject = message.ack_log_error, message.reject_log_error
    request._connection_errors, request.acknowledged = (), False
    request.events = []  # type: ignore[attr-defined]
    monkeypatch.setattr(
        ExperimentRequest, "send_event", lambda self, kind, **fields: self.events.append((kind, fields))
    )
    monkeypatch.setattr(module, "task_ready", lambda _request: None)
    monkeypatch.setattr(returning, "get_event_loop", lambda: None)
    yield request
    worker_state.revoked.clear()


def over(request: ExperimentRequest, error: BaseException) -> None:
    """Let the task be over by an error, as the pool says it."""
    try:
        raise error  # noqa: TRY301 - an error that was raised has a traceback
    except BaseException as raised:  # noqa: BLE001 - as the pool does
        request.on_failure(ExceptionInfo((type(raised), raised, raised.__traceback__), internal=True))


def result(reason: Reason) -> ExperimentEnded:
    state = reason.verdict.state
    assert state is not None
    return ended(Ended(state=state, outcome=Outcome(reason=reason, detail="d")))


def test_a_committed_failure_is_acknowledged(request_: ExperimentRequest, message: Message, node: Node) -> None:
    over(request_, result(Reason.EXITED_NONZERO))
    assert (message.done, node.asked, request_.events[0][0]) == (["ack"], [], "task-failed")


def test_a_cancelled_one_is_acknowledged_and_said_to_be_revoked(request_: ExperimentRequest, message: Message) -> None:
    over(request_, result(Reason.CANCELLED_BY_USER))
    assert (message.done, request_.events[0][0]) == (["ack"], "task-revoked")


@pytest.mark.parametrize("reason", [Reason.ATTEMPTS_EXHAUSTED, Reason.UNDECRYPTABLE])
def test_what_an_operator_must_see_is_set_aside(
    request_: ExperimentRequest, message: Message, node: Node, reason: Reason
) -> None:
    over(request_, result(reason))
    sentence = Outcome(reason=reason, detail="d").sentence
    assert node.asked == [("dead_letter", "first", "q_cpu", reason.name, sentence)]
    assert message.done == []


def another() -> ExperimentEnded:
    outcome = Outcome(reason=Reason.BAD_ENVELOPE, detail="another message has its id")
    return ended(Ended(state=State.FAILED, outcome=outcome))


@pytest.mark.security_case("same id, another message, again and again")
def test_a_flood_of_messages_under_known_ids_leaves_a_bounded_number_of_dead_letters(
    request_: ExperimentRequest, message: Message, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """A message whose id belongs to another one is sent again, hundreds of times: each is signed, and gets to a place.

    Refused: dead letters up to the bound of all that is refused, dropped beyond it, every one counted, a line a second.
    Evidence: the dead letters, the counts, the lines.
    Red before: each one became a dead letter, uncounted, without a line or a bound.
    """
    refusals = shared_by(request_.app).refusals
    refusals._clock = lambda: 0.0  # all of it within one second
    for _ in range(300):
        request_.acknowledged = False
        over(request_, another())
    assert len(node.asked) == MOST_DEAD_LETTERS_A_SECOND
    assert (refusals.counts, refusals.dropped) == ({"BAD_ENVELOPE": 300}, 300 - MOST_DEAD_LETTERS_A_SECOND)
    assert message.done == ["ack"] * refusals.dropped
    assert len([record for record in caplog.records if record.message == "delivery.refused"]) == 1


def test_what_an_operator_must_see_is_set_aside_however_many_lie_there(request_: ExperimentRequest, node: Node) -> None:
    node.dead_before = MOST_DEAD_LETTERS
    over(request_, another())
    assert node.asked == []
    request_.acknowledged = False
    over(request_, result(Reason.ATTEMPTS_EXHAUSTED))
    assert len(node.asked) == 1


def test_what_an_operator_must_see_is_let_go_where_nobody_has_made_a_queue_for_it(
    request_: ExperimentRequest, message: Message, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.error = missing_queue("q_cpu_dead")
    over(request_, result(Reason.ATTEMPTS_EXHAUSTED))
    assert (message.done, shared_by(request_.app).refusals.dropped) == (["ack"], 1)
    assert "dead_letters.no_queue" in caplog.text


def test_what_is_not_over_comes_back_after_its_delay(request_: ExperimentRequest, message: Message, node: Node) -> None:
    over(request_, HandedBack("held", 7.5))
    assert node.asked == [("defer", "first", "q_cpu", timedelta(seconds=7.5))]
    assert (message.done, request_.events[0][0]) == ([], "task-retried")


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(1), KeyboardInterrupt(), ValueError("x")])
def test_whatever_else_a_task_raises_comes_back(request_: ExperimentRequest, node: Node, error: BaseException) -> None:
    over(request_, error)
    assert node.asked == [("defer", "first", "q_cpu", AFTER_A_FAULT)]


@pytest.mark.parametrize("error", [HandedBack("held", 1.0), result(Reason.ATTEMPTS_EXHAUSTED)])
def test_a_delivery_that_the_broker_does_not_take_is_given_back_without_a_copy(
    request_: ExperimentRequest, message: Message, node: Node, error: Exception
) -> None:
    node.error = BrokerUnavailable("away")
    over(request_, error)
    assert message.done == ["requeue"]


def test_nothing_is_done_twice_to_one_delivery(request_: ExperimentRequest, message: Message, node: Node) -> None:
    over(request_, HandedBack("held", 1.0))
    over(request_, HandedBack("held", 1.0))
    over(request_, result(Reason.ATTEMPTS_EXHAUSTED))
    over(request_, result(Reason.EXITED_NONZERO))
    assert len(node.asked) == 1
    assert message.done == []


def test_the_acknowledgement_goes_to_the_delivery_that_replaced_a_dead_one(
    request_: ExperimentRequest, message: Message, node: Node
) -> None:
    newer = Message("second")
    request_.adopt(newer)
    over(request_, result(Reason.EXITED_NONZERO))
    assert (message.done, newer.done) == ([], ["ack"])
    assert node.asked == [("redelivered", request_.id, newer.properties)]


def test_celery_discards_nothing_that_was_revoked_the_attempt_commits_its_end(request_: ExperimentRequest) -> None:
    worker_state.revoked.add(request_.id)
    assert request_.revoked() is False


def test_a_terminate_is_a_cancel_that_does_not_wait(request_: ExperimentRequest, message: Message, node: Node) -> None:
    request_.terminate(None, signal="SIGKILL")
    assert node.asked == [("ask", request_.id, Reason.CANCELLED_BY_USER)]
    assert message.done == []


def test_a_worker_that_goes_asks_for_a_hand_back(request_: ExperimentRequest, node: Node) -> None:
    request_.cancel(None)
    assert node.asked == [("ask", request_.id, Reason.DRAINED)]


def test_a_success_is_no_error() -> None:
    assert ended(Ended(state=State.SUCCEEDED, outcome=Outcome(reason=Reason.EXITED_ZERO))).is_dead_letter is False
