"""kombu's Redis transport as workers use it: no message is lost on its way to a worker, and none can end it.

kombu pops a message and notes it afterwards; whoever dies in between, or is cut off while it waits, takes a message
along. Here, waiting takes nothing (the last element of a list is moved to its end, where it is), and a script takes the
message and notes it in one step. What is no message of kombu's becomes the body of one, for the consumer to refuse;
kombu would raise, and lose it. Each delivery gets a tag of our own and the name of the queue that it came from: a
sender's tag could be that of another delivery, its queue one that it is trusted for. Each request queue is looked into
together with what is served before it.

Where a worker screens what comes, a flood of what it refuses is taken many at a time, and gone before kombu notes it.
"""

from collections.abc import Callable, Sequence
from queue import Empty
from time import monotonic
from typing import Any, Final
from uuid import uuid4

from kombu.transport import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from jobqueue.brokers.copies import as_message
from jobqueue.brokers.precedence import Precedence
from jobqueue.brokers.redis_server import GIVE_BACK, RECEIVE_REQUEST, RECEIVE_SOME, mail_hash, mail_index, mail_keys
from jobqueue.routing import served_queue

# Its stubs know a small part of it.
_kombu: Any = redis

# No list has this name, so waiting for one lasts as long as it may.
_NOWHERE: Final = "jobqueue:nowhere"
# One list can be waited for; the others are looked at when the wait is over.
_WAIT_AMONG_SEVERAL_SECONDS: Final = 0.2
# How many refused messages are taken at a time, and how long the main loop waits for that.
_MOST_AT_A_TIME: Final = 64
_LONGEST_SECONDS: Final = 0.05


class _Noted(_kombu.QoS):  # type: ignore[misc]  # a class, untyped
    """kombu's notes, which take a delivery over from those of the script."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a delivery; at no time is it in neither of the notes."""
        super().append(message, delivery_tag)
        queue = message.delivery_info["routing_key"]
        with self.pipe_or_acquire() as pipe:
            pipe.hdel(mail_hash(queue), delivery_tag)
            pipe.zrem(mail_index(queue), delivery_tag)
            pipe.execute()


class Channel(_kombu.Channel):  # type: ignore[misc]  # a class, untyped
    """A channel that takes requests in one step; what needs no acknowledgement it takes as kombu does."""

    QoS = _Noted

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        client = self._create_client()
        self._receive_script = client.register_script(RECEIVE_REQUEST)
        self._receive_some = client.register_script(RECEIVE_SOME)
        self._give_back = client.register_script(GIVE_BACK)
        self._is_acknowledging = True
        self._gone: set[str] = set()
        self._precedence = Precedence()

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's
        """Return a client; where the connection was given up, say so as Redis does.

        kombu would look for an address that is not there any more: whoever acknowledges or gives back what the old
        connection brought would end the worker. What was not acknowledged comes back in its own time.
        """
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the connection that brought this was given up")
        return super()._create_client(asynchronous)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **options: Any) -> Any:  # noqa: FBT001 - kombu's
        """Consume a queue, and remember whether it is to be acknowledged."""
        self._is_acknowledging = not no_ack
        return super().basic_consume(queue, no_ack, *args, **options)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Begin to wait for a message, without taking one."""
        if not self._is_acknowledging:
            super()._brpop_start(timeout)
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        longest = self.brpop_timeout if timeout is None else timeout
        seconds = longest if len(queues) == 1 else min(longest, _WAIT_AMONG_SEVERAL_SECONDS)
        awaited = _NOWHERE if queues[0] in self._gone else queues[0]
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self._in_poll.send_command("BLMOVE", awaited, awaited, "RIGHT", "RIGHT", seconds)

    def _brpop_read(self, **options: Any) -> bool:
        """End the wait, take the next message of any queue, and deliver it."""
        if not self._is_acknowledging:
            return bool(super()._brpop_read(**options))
        try:
            self.client.parse_response(self.client.connection, "BLMOVE", **options)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        queues = [] if self._closing else self._queue_cycle.consume(len(self.active_queues))
        if not (queues and self._take(queues)):
            raise Empty
        return True

    def _take(self, queues: Sequence[str]) -> bool:
        """Deliver the next message of the first queue that has one, or of what is served before that."""
        names, tag = [name for queue in queues for name in self._precedence.order(queue)], str(uuid4())
        with self.conn_or_acquire() as client:
            raw, source, *missing = self._receive_script(
                keys=mail_keys(*names), args=[tag, self.visibility_timeout, *names], client=client
            )
        if raw is None:
            self._gone = {name.decode() for name in missing}
            self._queue_cycle.rotate(queues[0])
            return False
        name = source.decode()
        queue = served_queue(name)
        self._gone.discard(queue)
        self._queue_cycle.rotate(queue)
        payload = as_message(raw, queue=name, tag=tag)
        if not self._is_refused(payload):
            self._hand_on(payload, name)
            return True
        self._precedence.note_refused(name)
        self._remove(name, [tag])
        return self._take_after_refused(name)

    def _take_after_refused(self, name: str) -> bool:
        """Take some more of a queue, which is likely to hold what is refused, until there is something to deliver."""
        until, count = monotonic() + _LONGEST_SECONDS, 1
        while monotonic() < until:
            count = min(2 * count, _MOST_AT_A_TIME)
            taken = self._take_some(name, count)
            sound = [payload for payload in taken if not self._is_refused(payload)]
            self._remove(name, [_tag_of(payload) for payload in taken if payload not in sound])
            for payload in reversed(sound[1:]):
                keys = [mail_hash(name), mail_index(name), name]
                with self.conn_or_acquire() as client:
                    self._give_back(keys=keys, args=[_tag_of(payload)], client=client)
            if sound:
                self._hand_on(sound[0], name)
                return True
            if len(taken) < count:
                break
        return False

    def _take_some(self, name: str, count: int) -> list[dict[str, Any]]:
        tag, keys = f"{uuid4()}:", mail_keys(name)[1:]
        with self.conn_or_acquire() as client:
            found = self._receive_some(keys=keys, args=[tag, self.visibility_timeout, count], client=client)
        return [as_message(raw, queue=name, tag=f"{tag}{number}") for number, raw in enumerate(found, start=1)]

    def _remove(self, name: str, tags: Sequence[str]) -> None:
        if tags:
            with self.conn_or_acquire() as client, client.pipeline() as pipe:
                pipe.hdel(mail_hash(name), *tags)
                pipe.zrem(mail_index(name), *tags)
                pipe.execute()

    def _is_refused(self, payload: dict[str, Any]) -> bool:
        is_refused = self.connection.is_refused
        return is_refused is not None and is_refused(self.Message(payload, channel=self))

    def _hand_on(self, payload: dict[str, Any], name: str) -> None:
        self._precedence.note(name)
        self.connection._deliver(payload, served_queue(name))  # noqa: SLF001 - kombu's own way


class Transport(_kombu.Transport):  # type: ignore[misc]  # a class, untyped
    """kombu's transport over these channels.

    Attributes:
        is_refused: what a worker screens with: tells of a message that it was counted and is to be removed.
    """

    Channel = Channel
    is_refused: Callable[[Any], bool] | None = None


def _tag_of(payload: dict[str, Any]) -> str:
    return str(payload["properties"]["delivery_tag"])
