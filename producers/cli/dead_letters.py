"""Dead letters: what lies in `<queue>_dead`, taken to be looked at, and given back unless it was removed."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from jobqueue.brokers.base import Broker, Mail, Post
from jobqueue.brokers.copies import DETAIL_HEADER, REASON_HEADER, TIME_HEADER
from jobqueue.codec import decode_envelope, decode_header
from jobqueue.envelope import MAX_ENVELOPE_BYTES
from jobqueue.errors import JobqueueError, NotFound
from jobqueue.header import Header
from jobqueue.ids import is_experiment_id
from jobqueue.routing import dead_letter_queue

_LONG_AGO: Final = datetime.fromtimestamp(0, UTC)
_NUMBER_DIGITS: Final = 8
_SHORTEST_NUMBER: Final = 4
# A broker may hold a message back for a moment, and tell of it already.
_PATIENCE: Final = timedelta(seconds=2)


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """One message that was set aside.

    Attributes:
        number: hexadecimal digits that are made of what it says, so that they stay the same from look to look.
        queue: the request queue that it came through.
        experiment_id: as the message claims, whose signature nobody has checked here; empty where it names none.
        header: the clear part of its envelope, if it is one.
        reason, detail: why it was set aside; empty when the broker itself did it.
        set_aside_at: aware; None when nobody noted it.
        size_bytes: of its body.
        mail: without that body where it is no envelope, which nobody has a use for and which can be of any size.
    """

    number: str
    queue: str
    experiment_id: str
    header: Header | None
    reason: str
    detail: str
    set_aside_at: datetime | None
    size_bytes: int
    mail: Mail = field(repr=False)


class Pile:
    """The dead letters of some queues, in hand: nobody else gets them meanwhile.

    Attributes:
        letters: oldest first.
        is_cut: there are more than were asked for.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self.letters: list[DeadLetter] = []
        self.is_cut = False

    def remove(self, letter: DeadLetter) -> None:
        """Remove a dead letter for good."""
        self._post.acknowledge(letter.mail)
        self.letters = [other for other in self.letters if other is not letter]

    def choose(self, words: Sequence[str]) -> list[DeadLetter]:
        """Return those that the words mean: numbers, the beginnings of numbers, or ids of experiments.

        Raises:
            NotFound: a word means none.
        """
        for word in words:
            if not any(_is_meant(letter, word) for letter in self.letters):
                raise NotFound(f"no dead letter is {word!r}", hint="`jobqueue dlq ls` shows them")
        return [letter for letter in self.letters if any(_is_meant(letter, word) for word in words)]


@contextmanager
def open_pile(broker: Broker, queues: Sequence[str], *, limit: int) -> Iterator[Pile]:
    """Take the dead letters of request queues, at most `limit` of each; give back at the end what was not removed."""
    pile = Pile(broker.post)
    try:
        for queue in queues:
            _take(broker, pile, queue, limit)
        # What was given back by an earlier look lies in another order at some brokers.
        pile.letters.sort(key=lambda letter: (letter.set_aside_at or _LONG_AGO, letter.number))
        yield pile
    finally:
        for letter in reversed(pile.letters):
            with suppress(JobqueueError):  # it comes back by itself
                broker.post.give_back(letter.mail)


def _take(broker: Broker, pile: Pile, queue: str, limit: int) -> None:
    source = dead_letter_queue(queue)
    expected = broker.queues.depth(source).ready
    pile.is_cut = pile.is_cut or expected > limit
    for _ in range(min(expected, limit)):
        mail = broker.post.receive(source, timeout=_PATIENCE)
        if mail is None:
            return
        pile.letters.append(_read(mail, queue))


def _read(mail: Mail, queue: str) -> DeadLetter:
    header, claimed = _read_header(mail.body), mail.headers.get("id", "")
    return DeadLetter(
        number=_number(mail, queue),
        queue=queue,
        experiment_id=header.experiment_id if header else claimed if is_experiment_id(claimed) else "",
        header=header,
        reason=mail.headers.get(REASON_HEADER, ""),
        detail=mail.headers.get(DETAIL_HEADER, ""),
        set_aside_at=_read_time(mail.headers.get(TIME_HEADER, "")),
        size_bytes=len(mail.body),
        mail=mail if header else replace(mail, body=b""),
    )


def _number(mail: Mail, queue: str) -> str:
    digest = hashlib.sha256(mail.body)
    for text in (queue, mail.content_type, *(f"{name}={mail.headers[name]}" for name in sorted(mail.headers))):
        digest.update(b"\0" + text.encode("utf-8", "replace"))
    return digest.hexdigest()[:_NUMBER_DIGITS]


def _read_header(body: bytes) -> Header | None:
    if len(body) > MAX_ENVELOPE_BYTES:
        return None
    try:
        return decode_header(decode_envelope(body).header)
    except JobqueueError:
        return None


def _read_time(text: str) -> datetime | None:
    with suppress(ValueError):
        read = datetime.fromisoformat(text)
        return read if read.tzinfo else read.replace(tzinfo=UTC)
    return None


def _is_meant(letter: DeadLetter, word: str) -> bool:
    is_number = len(word) >= _SHORTEST_NUMBER and letter.number.startswith(word.lower())
    return is_number or (bool(word) and word == letter.experiment_id)
