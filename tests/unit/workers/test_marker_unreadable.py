"""A result marker that nobody can read: the experiment has ended, and nobody knows how."""

import pytest
from services.node import FakeNode

from jobqueue.artifacts import result_key
from jobqueue.envelope import Verified
from jobqueue.lifecycle import Fault, Message, Reason, State
from jobqueue.storage import open_store
from workers.attempt.runtimes.base import Exit
from workers.attempt.runtimes.fake import Script
from workers.attempt.supervise import Ended, PutOff

RUBBISH = b'{"state": "SUCC'


def damage(node: FakeNode, message: Verified, content: bytes = RUBBISH) -> bytes:
    """Put a marker that is none under the experiment's name."""
    open_store(f"memory://{node.queue}").put(result_key(message.header.experiment_id), content)
    return content


def stored_marker(node: FakeNode, message: Verified) -> bytes:
    return node.stored(result_key(message.header.experiment_id))[result_key(message.header.experiment_id)]


def run_until_final(node: FakeNode, message: Verified) -> Ended:
    while isinstance(result := node.run(message), PutOff):
        node.clock.ahead += result.delay
    return result


@pytest.mark.parametrize("content", [RUBBISH, b"", b"[]", b"\xff\x00"])
def test_it_is_put_off_as_the_stores_fault_and_nothing_runs(node: FakeNode, content: bytes) -> None:
    message = node.message()
    damage(node, message, content)
    result = node.run(message)
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert (result.outcome.reason, result.outcome.reason.verdict.fault) == (Reason.STORE_UNAVAILABLE, Fault.PLATFORM)
    assert "its result marker cannot be read" in result.outcome.detail
    record = node.record(message)
    assert (record.state, record.worker_id, record.platform_failures) == (State.QUEUED, None, 1)
    assert node.runtime.containers == []


def test_once_the_budget_is_spent_it_has_failed_its_message_is_set_aside_and_the_marker_is_as_it_was(
    node: FakeNode,
) -> None:
    message = node.message()
    content = damage(node, message)
    result = run_until_final(node, message)
    assert (result.state, result.is_dead_letter) == (State.FAILED, True)
    assert result.outcome.reason.verdict.message is Message.DEAD_LETTER
    record = node.record(message)
    assert (record.state, record.reason, record.attempt) == (State.FAILED, Reason.ATTEMPTS_EXHAUSTED, 3)
    assert "its result marker cannot be read" in record.detail
    assert record.detail.startswith("STORE_UNAVAILABLE, STORE_UNAVAILABLE, STORE_UNAVAILABLE")
    assert (node.runtime.containers, stored_marker(node, message)) == ([], content)
    finals = [report for report in node.reports() if report.state is State.FAILED]
    assert [report.reason for report in finals] == [Reason.ATTEMPTS_EXHAUSTED]


def test_one_that_can_be_read_again_is_followed(node: FakeNode) -> None:
    other, message = node.message(), node.message()
    assert isinstance(node.run(other), Ended)
    whole = stored_marker(node, other).replace(
        other.header.experiment_id.encode(), message.header.experiment_id.encode()
    )
    damage(node, message)
    first = node.run(message)
    assert isinstance(first, PutOff)
    damage(node, message, whole)
    node.clock.ahead += first.delay
    assert isinstance(result := node.run(message), Ended)
    assert (result.state, len(node.runtime.containers)) == (State.SUCCEEDED, 1)


def test_an_attempt_that_meets_one_at_its_end_is_not_run_again(node: FakeNode) -> None:
    message = node.message()
    node.register(message)
    node.runtime.script = Script(is_held=True)
    running = node.start(message)
    container = node.container()
    content = damage(node, message)
    container.finish(Exit(code=0))
    first = running.join()
    assert isinstance(first, PutOff)
    node.clock.ahead += first.delay
    assert run_until_final(node, message).outcome.reason is Reason.ATTEMPTS_EXHAUSTED
    assert (len(node.runtime.containers), stored_marker(node, message)) == (1, content)
