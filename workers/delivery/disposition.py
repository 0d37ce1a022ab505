"""What a task raises so that the right thing becomes of its message; read by the request on the main thread.

Celery passes exceptions through pickle, so each one carries plain arguments only.
"""

from datetime import timedelta

from jobqueue.lifecycle import Reason, State
from workers.attempt.supervise import Ended


class ExperimentEnded(Exception):
    """The experiment is final, and not a success; or the message is not that of the experiment."""

    def __init__(self, reason: str, sentence: str, state: str, is_dead_letter: bool) -> None:  # noqa: FBT001 - see above
        super().__init__(reason, sentence, state, is_dead_letter)
        self.reason = reason
        self.sentence = sentence
        self.is_cancelled = state == State.CANCELLED
        self.is_dead_letter = is_dead_letter
        # Of another one's: nothing has ended, and it can be sent as often as somebody likes.
        self.is_refusal = reason == Reason.BAD_ENVELOPE.name

    def __str__(self) -> str:
        return f"{self.reason}: {self.sentence}"


class HandedBack(Exception):
    """The experiment is not final; its message is to come back after `delay`."""

    def __init__(self, sentence: str, delay_seconds: float) -> None:
        super().__init__(sentence, delay_seconds)
        self.sentence = sentence
        self.delay = timedelta(seconds=delay_seconds)

    def __str__(self) -> str:
        return self.sentence


def ended(result: Ended) -> ExperimentEnded:
    """Return what says that `result` is the end."""
    outcome = result.outcome
    return ExperimentEnded(outcome.reason.name, outcome.sentence, result.state.value, result.is_dead_letter)
