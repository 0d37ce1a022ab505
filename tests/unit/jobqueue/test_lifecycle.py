"""The policy of every end, as the table of outcomes says it."""

import pytest

from jobqueue.lifecycle import FINAL_STATES, MOVES, Budget, Fault, Message, Outcome, Reason, State

# What ends it: whose fault, final state, what becomes of the message, what another attempt is paid from.
OUTCOMES = {
    "EXITED_ZERO": ("none", "SUCCEEDED", "ack", "nothing"),
    "EXITED_NONZERO": ("user", "FAILED", "ack", "user"),
    "OUT_OF_MEMORY": ("user", "FAILED", "ack", "user"),
    "GPU_OUT_OF_MEMORY": ("user", "FAILED", "ack", "user"),
    "TIMED_OUT": ("user", "FAILED", "ack", "user"),
    "STALLED": ("user", "FAILED", "ack", "user"),
    "LIMIT_EXCEEDED": ("user", "FAILED", "ack", "user"),
    "EXPIRED": ("none", "FAILED", "ack", "nothing"),
    "IMAGE_REFUSED": ("user", "FAILED", "ack", "nothing"),
    "IMAGE_PULL_FAILED": ("platform", None, "hand_back", "platform"),
    "INPUT_INVALID": ("user", "FAILED", "ack", "nothing"),
    "STORE_UNAVAILABLE": ("platform", None, "hand_back", "platform"),
    "RUNTIME_FAILURE": ("platform", None, "hand_back", "platform"),
    "NODE_DISK_FULL": ("platform", None, "hand_back", "platform"),
    "DEVICE_FAILURE": ("hardware", None, "hand_back", "platform"),
    "WORKER_LOST": ("platform", None, "hand_back", "platform"),
    "SUPERSEDED": ("platform", None, "hand_back", "nothing"),
    "DRAINED": ("capacity", None, "hand_back", "free"),
    "CANCELLED_BY_USER": ("none", "CANCELLED", "ack", "nothing"),
    "QUEUE_DELETED": ("none", "CANCELLED", "ack", "nothing"),
    "DOES_NOT_FIT": ("capacity", None, "hand_back", "free"),
    "ATTEMPTS_EXHAUSTED": ("platform", "FAILED", "dead_letter", "nothing"),
    "BAD_ENVELOPE": ("sender", None, "dead_letter", "nothing"),
    "UNTRUSTED": ("sender", None, "drop", "nothing"),
    # It was accepted, so it ends: the header tells which experiment it is.
    "UNDECRYPTABLE": ("sender", "FAILED", "dead_letter", "nothing"),
    "BAD_SPEC": ("user", "FAILED", "ack", "nothing"),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_each_reason_leads_to_what_the_table_says(name: str) -> None:
    verdict = Reason[name].verdict
    state = verdict.state.value if verdict.state else None
    assert (verdict.fault, state, verdict.message, verdict.budget) == OUTCOMES[name]


def test_the_table_is_whole_and_no_reason_hides_behind_another() -> None:
    assert set(Reason.__members__) == set(OUTCOMES)
    assert len(list(Reason)) == len(OUTCOMES), "two equal verdicts would make one reason an alias of the other"


@pytest.mark.parametrize("reason", list(Reason))
def test_policy_is_consistent(reason: Reason) -> None:
    verdict = reason.verdict
    assert verdict.state in {None, *FINAL_STATES}
    if verdict.budget is Budget.USER:
        assert verdict.fault is Fault.USER, "only user faults spend the user's retries"
    if verdict.message is Message.HAND_BACK:
        assert verdict.state is None, "a message goes only when the experiment is final"
    if verdict.state is not None:
        assert verdict.message in {Message.ACK, Message.DEAD_LETTER}
    assert verdict.state is not State.CANCELLED or verdict.fault is Fault.NONE


@pytest.mark.parametrize("reason", list(Reason))
def test_each_reason_has_a_sentence_and_a_users_fault_a_hint(reason: Reason) -> None:
    verdict = reason.verdict
    assert verdict.sentence
    assert verdict.sentence[0] != verdict.sentence[0].upper() or verdict.sentence.startswith("GPU")
    assert not verdict.sentence.endswith(".")
    assert verdict.hint or verdict.fault is not Fault.USER


def test_final_states_never_change() -> None:
    assert {state for state in State if not MOVES[state]} == FINAL_STATES
    assert {state for state in State if state.is_final} == FINAL_STATES


def test_every_state_can_be_reached_and_every_live_one_can_end_or_go_back() -> None:
    assert set(MOVES) == set(State)
    assert set().union(*MOVES.values()) == set(State)
    for state in set(State) - FINAL_STATES:
        assert MOVES[state] >= {State.FAILED, State.CANCELLED}
        assert state is State.QUEUED or State.QUEUED in MOVES[state]
    assert [state for state in State if State.SUCCEEDED in MOVES[state]] == [State.FINALIZING]


def test_an_outcome_says_what_happened_with_its_numbers() -> None:
    assert Outcome(reason=Reason.TIMED_OUT).sentence == "it ran longer than its timeout"
    assert Outcome(reason=Reason.TIMED_OUT, detail="6h").sentence == "it ran longer than its timeout: 6h"
