"""The thread that asks SQS for request messages: one question at a time, whatever SQS answers.

Each question costs, so what is served before a request queue is asked for where it may hold something: after the queue
has held something, and at some of the polls of one that stays empty. What was refused is deleted here, many at a time.
"""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from queue import SimpleQueue
from typing import Final

from jobqueue.brokers.precedence import Precedence
from jobqueue.brokers.sqs_client import Receipt, SqsServer
from jobqueue.errors import BrokerUnavailable, JobqueueError, NoSuchQueue
from jobqueue.routing import first_queue, is_first_queue

log = logging.getLogger(__name__)

# How long the poll of one queue may keep the others waiting.
_SHARED_WAIT: Final = timedelta(seconds=2)
# So often one queue alone is asked before its poll may take as long as it can.
_ALONE: Final = 5
# At one of so many polls of an empty queue, what is served before it is asked for too: it may have come back.
_FIRST_EVERY: Final = 4
# So long a poll asks all of SQS' servers, an immediate one only some of them.
_FIRST_WAIT: Final = timedelta(seconds=1)
# One that is not there may be made later.
_MISSING_SECONDS: Final = 600.0
# So long one that cannot be asked for is left alone.
_SILENT_SECONDS: Final = 30.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_LOG_EVERY_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """For whose messages to ask, and how many there is room for."""

    queues: tuple[str, ...]
    count: int


class Receiver:
    """Asks on a thread of its own, and hands on what comes; no answer ends it.

    Args:
        server: whom it asks.
        on_answer: called on that thread with the messages, none among others, after each question.
    """

    def __init__(self, server: SqsServer, *, on_answer: Callable[[Sequence[Receipt]], None]) -> None:
        self._server = server
        self._on_answer = on_answer
        self._errands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._is_closed = threading.Event()
        self._asked: dict[str, int] = {}
        self._count = 0
        self._alone = 0
        self._precedence = Precedence()
        self._quiet: Counter[str] = Counter()
        self._missing: dict[str, float] = {}
        self._failures = 0
        self._logged_at = float("-inf")
        self._thread = threading.Thread(target=self._serve, name="sqs-receiver", daemon=True)
        self._thread.start()

    def ask(self, question: Question) -> None:
        """Ask once; not again before the answer."""
        self._errands.put(partial(self._answer, question))

    def settle(
        self, *, handed: Collection[str], refused: Sequence[Receipt] = (), returned: Sequence[Receipt] = ()
    ) -> None:
        """Say what became of an answer, at the latest before the next question.

        Args:
            handed: from which queues messages were handed on.
            refused: what is to be deleted.
            returned: what others may have.
        """
        self._errands.put(partial(self._settle, handed, refused, returned))

    def close(self) -> None:
        """Give back whatever still comes, and end after the poll that goes on."""
        self._is_closed.set()
        self._errands.put(None)

    def _serve(self) -> None:
        while (errand := self._errands.get()) is not None:
            errand()

    def _answer(self, question: Question) -> None:
        receipts = self._receive(question)
        if self._is_closed.is_set():
            self._settle((), (), receipts)
        else:
            self._on_answer(receipts)

    def _settle(self, handed: Collection[str], refused: Sequence[Receipt], returned: Sequence[Receipt]) -> None:
        for name in handed:
            if not is_first_queue(name):
                self._precedence.note(name)
        try:
            self._server.delete_all(refused)
            self._server.give_back_all(returned)
        except Exception as error:  # noqa: BLE001 - whatever the library raises: they come back in their own time
            log.warning("delivery.not_settled", extra={"error": str(error)})

    def _receive(self, question: Question) -> Sequence[Receipt]:
        queue, wait = self._choose(question.queues)
        try:
            receipts = self._ask(queue, count=question.count, wait=wait)
        except JobqueueError as error:
            self._pause(error, queue)
            return ()
        except Exception as error:  # whatever the library raises, the worker must go on asking
            log.exception("queue.not_asked")
            self._pause(BrokerUnavailable(str(error)), queue)
            return ()
        self._failures = 0
        return receipts

    def _ask(self, queue: str, *, count: int, wait: timedelta) -> Sequence[Receipt]:
        """Ask for messages of a request queue, and first for what is served before it when that is due."""
        for name, patience in self._steps(queue, wait):
            most = min(count, self._precedence.left(queue)) if is_first_queue(name) else count
            if receipts := self._ask_one(name, count=most, wait=patience):
                self._quiet[queue] = 0
                for _ in receipts:
                    self._precedence.note_refused(name)  # the others' turn is over when one of theirs was handed on
                return receipts
        self._quiet[queue] += 1
        return ()

    def _steps(self, queue: str, wait: timedelta) -> list[tuple[str, timedelta]]:
        """Return which queues to ask, one after the other, and how long to wait for each one's messages."""
        own, first = (queue, wait), first_queue(queue)
        if self._quiet[queue] % _FIRST_EVERY or time.monotonic() < self._missing.get(first, 0.0):
            return [own]
        ahead = (first, min(_FIRST_WAIT, wait) if self._quiet[queue] else timedelta(0))
        return [(queue, timedelta(0)), ahead, own] if self._precedence.is_others_turn(queue) else [ahead, own]

    def _ask_one(self, name: str, *, count: int, wait: timedelta) -> Sequence[Receipt]:
        try:
            return self._server.receive(name, count=count, wait=wait)
        except JobqueueError as error:
            if not is_first_queue(name):
                raise
            is_missing = isinstance(error, NoSuchQueue)
            self._missing[name] = time.monotonic() + (_MISSING_SECONDS if is_missing else _SILENT_SECONDS)
            if not is_missing:  # whoever may not ask for it, as by rights of before, still serves the request queue
                self._tell(error, name)
            return ()

    def _choose(self, queues: Sequence[str]) -> tuple[str, timedelta]:
        """Return the queue that was asked longest ago, and how long to wait for its messages."""
        queue = min(queues, key=lambda name: self._asked.get(name, 0))
        self._count += 1
        self._asked = {**{name: self._asked.get(name, 0) for name in queues}, queue: self._count}
        self._alone = self._alone + 1 if len(queues) == 1 else 0
        wait = self._server.address.wait
        # Where one of many was chosen for what waits in it, another one may soon be.
        return queue, wait if self._alone > _ALONE else min(wait, _SHARED_WAIT)

    def _tell(self, error: JobqueueError, queue: str) -> None:
        if time.monotonic() - self._logged_at >= _LOG_EVERY_SECONDS:
            self._logged_at = time.monotonic()
            event = "queue.gone" if isinstance(error, NoSuchQueue) else "broker.unavailable"
            log.warning(event, extra={"queue": queue, "error": error.message})

    def _pause(self, error: JobqueueError, queue: str) -> None:
        self._tell(error, queue)
        seconds = min(_FIRST_PAUSE_SECONDS * 2**self._failures, _LONGEST_PAUSE_SECONDS)
        self._failures = min(self._failures + 1, 10)
        self._is_closed.wait(seconds * random.uniform(0.5, 1))  # noqa: S311 - nobody gains by guessing it
