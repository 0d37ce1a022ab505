"""States are few, reasons many: where an experiment is, why an attempt ended, and what follows from it.

A state is never chosen by itself: an attempt ends for a `Reason`, and the reason says which final state, whose fault,
whether to try again, and what becomes of the message. The table is the whole policy; every broker obeys it.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final


class State(StrEnum):
    """Where an experiment is; the last three are final and never change."""

    QUEUED = "QUEUED"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    FINALIZING = "FINALIZING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Tell whether the experiment is over."""
        return self in FINAL_STATES


FINAL_STATES: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

MOVES: Final[dict[State, frozenset[State]]] = {
    State.QUEUED: frozenset({State.PREPARING, State.FAILED, State.CANCELLED}),
    State.PREPARING: frozenset({State.RUNNING, State.QUEUED, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.FINALIZING, State.QUEUED, State.FAILED, State.CANCELLED}),
    State.FINALIZING: frozenset({State.QUEUED, *FINAL_STATES}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class Phase(StrEnum):
    """What PREPARING is busy with."""

    WAITING = "waiting"  # for devices, cores or memory of its node
    PULLING = "pulling"
    STAGING = "staging"


class Fault(StrEnum):
    """Whose fault the end was; only user faults spend the user's retries."""

    NONE = "none"
    USER = "user"
    PLATFORM = "platform"
    CAPACITY = "capacity"
    HARDWARE = "hardware"
    SENDER = "sender"


class Budget(StrEnum):
    """What another attempt is paid from."""

    NOTHING = "nothing"  # it is over
    USER = "user"  # the experiment's own `retries`
    PLATFORM = "platform"  # the platform's attempts
    FREE = "free"  # does not count


class Message(StrEnum):
    """What becomes of the message that brought the attempt."""

    ACK = "ack"
    HAND_BACK = "hand_back"
    DEAD_LETTER = "dead_letter"
    DROP = "drop"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What follows from a reason.

    Attributes:
        state: the final state; None when the reason alone ends nothing.
        fault: whose it was.
        budget: what another attempt is paid from.
        message: what becomes of the message once the end is committed.
        sentence: what happened, for people.
        hint: what to do about it, for people.
    """

    state: State | None
    fault: Fault
    budget: Budget
    message: Message
    sentence: str
    hint: str = ""


def _user(sentence: str, hint: str, *, again: bool = True) -> Verdict:
    budget = Budget.USER if again else Budget.NOTHING
    return Verdict(
        state=State.FAILED,
        fault=Fault.USER,
        budget=budget,
        message=Message.ACK,
        sentence=sentence,
        hint=hint,
    )


def _platform(sentence: str, hint: str = "", *, fault: Fault = Fault.PLATFORM) -> Verdict:
    return Verdict(
        state=None,
        fault=fault,
        budget=Budget.PLATFORM,
        message=Message.HAND_BACK,
        sentence=sentence,
        hint=hint,
    )


def _end(state: State, sentence: str, hint: str = "") -> Verdict:
    return Verdict(
        state=state,
        fault=Fault.NONE,
        budget=Budget.NOTHING,
        message=Message.ACK,
        sentence=sentence,
        hint=hint,
    )


def _free(sentence: str, hint: str = "") -> Verdict:
    return Verdict(
        state=None,
        fault=Fault.CAPACITY,
        budget=Budget.FREE,
        message=Message.HAND_BACK,
        sentence=sentence,
        hint=hint,
    )


def _refused(message: Message, sentence: str, hint: str = "") -> Verdict:
    return Verdict(
        state=None,
        fault=Fault.SENDER,
        budget=Budget.NOTHING,
        message=message,
        sentence=sentence,
        hint=hint,
    )


class Reason(Enum):
    """Why an attempt, an experiment or a message ended; the value is what follows."""

    EXITED_ZERO = _end(State.SUCCEEDED, "the container exited with code 0 and its outputs are stored")
    EXITED_NONZERO = _user("the container exited with another code than 0", "read the last lines of its log")
    OUT_OF_MEMORY = _user("the container was killed by its memory limit", "ask for more with memory=")
    GPU_OUT_OF_MEMORY = _user("the GPU's memory was exhausted", "use a smaller batch, or ask for more with gpu_memory=")
    TIMED_OUT = _user("it ran longer than its timeout", "ask for more with timeout=, or save checkpoints")
    STALLED = _user("no output or progress for its stall_timeout", "look at where it hangs, or print progress")
    LIMIT_EXCEEDED = _user("it went over a limit", "write less, or ask for more with disk=")
    EXPIRED = Verdict(
        state=State.FAILED, fault=Fault.NONE, budget=Budget.NOTHING, message=Message.ACK,
        sentence="it expired before it could start", hint="submit it again, or give expires= more time",
    )  # fmt: skip
    IMAGE_REFUSED = _user(
        "the image does not exist or is not allowed here",
        "check its name and the node's JOBQUEUE_IMAGES",
        again=False,
    )
    IMAGE_PULL_FAILED = _platform("the image could not be fetched", "is the image registry reachable from the node?")
    INPUT_INVALID = _user(
        "an input is missing, or its content has changed",
        "upload it again and resubmit",
        again=False,
    )
    STORE_UNAVAILABLE = _platform(
        "the artifact store did not answer", "is JOBQUEUE_STORAGE_URL reachable from the node?"
    )
    RUNTIME_FAILURE = _platform("the container engine failed", "look at the engine's log on the node")
    NODE_DISK_FULL = _platform("the node's disk is full", "free some room on the node")
    DEVICE_FAILURE = _platform("a device failed", fault=Fault.HARDWARE)
    WORKER_LOST = _platform("the worker was lost while it held the lease")
    SUPERSEDED = Verdict(
        state=None, fault=Fault.PLATFORM, budget=Budget.NOTHING, message=Message.HAND_BACK,
        sentence="a newer attempt holds the lease",
    )  # fmt: skip
    DRAINED = _free("the worker was drained before the experiment ended")
    CANCELLED_BY_USER = _end(State.CANCELLED, "it was cancelled")
    QUEUE_DELETED = _end(State.CANCELLED, "its queue was deleted")
    DOES_NOT_FIT = _free(
        "it is left to another node",
        "it starts where there is room; ask for less where `jobqueue why` says that none has",
    )
    ATTEMPTS_EXHAUSTED = Verdict(
        state=State.FAILED, fault=Fault.PLATFORM, budget=Budget.NOTHING, message=Message.DEAD_LETTER,
        sentence="the platform failed too often",
        hint="`jobqueue show` names each attempt's reason; once that is mended, submit it again",
    )  # fmt: skip
    BAD_ENVELOPE = _refused(Message.DEAD_LETTER, "the message is too large, malformed or not an envelope")
    UNTRUSTED = _refused(Message.DROP, "the message's signature is absent, wrong or not trusted for this queue")
    UNDECRYPTABLE = Verdict(
        state=State.FAILED, fault=Fault.SENDER, budget=Budget.NOTHING, message=Message.DEAD_LETTER,
        sentence="the message is not sealed to a key of this node",
        hint="seal to the node's newest key: `jobqueue keys show`",
    )  # fmt: skip
    BAD_SPEC = _user(
        "the envelope opens, but its spec is invalid",
        "submit it with a current client",
        again=False,
    )

    @property
    def verdict(self) -> Verdict:
        """What follows from this reason."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        reason: why.
        detail: the numbers: which limit, which input, what the engine said; no secrets.
        exit_code: of the container, if there was one.
        last_lines: the end of its output, for the final report.
    """

    reason: Reason
    detail: str = ""
    exit_code: int | None = None
    last_lines: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What happened, with its numbers."""
        sentence = self.reason.verdict.sentence
        return f"{sentence}: {self.detail}" if self.detail else sentence
