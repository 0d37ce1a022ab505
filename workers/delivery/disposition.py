"""What a task raises so that the right thing becomes of its message; caught by the request on the main thread."""

from datetime import timedelta

from jobqueue.lifecycle import State
from workers.attempt.supervise import Ended


class ExperimentEnded(Exception):
    """The experiment is final, and not a success.

    Attributes:
        is_cancelled: it ended as CANCELLED.
        is_dead_letter: its message is to be set aside.
        reason, sentence: for the dead letter and for Celery's event.
    """

    def __init__(self, ended: Ended) -> None:
        super().__init__(f"{ended.outcome.reason.name}: {ended.outcome.sentence}")
        self.is_cancelled = ended.state is State.CANCELLED
        self.is_dead_letter = ended.is_dead_letter
        self.reason = ended.outcome.reason.name
        self.sentence = ended.outcome.sentence


class HandedBack(Exception):
    """The experiment is not final; its message is to come back after `delay`."""

    def __init__(self, sentence: str, *, delay: timedelta) -> None:
        super().__init__(sentence)
        self.delay = delay
