"""kombu's RabbitMQ transport as this project receives with it: nothing that lies in a queue can end who takes it.

The library reads a message's headers on its way in, outside of every callback: tables nested deeply, a date far away or
a text that is none would end the worker, stay in the queue, and end the next one. And it gathers a body of any size.
Here, what cannot be read has no headers, of what is far too long only the beginning is kept, and the consumer refuses
both. A delivery carries the name of the queue that it came from: its sender's routing key may name another one.

Where a worker screens what comes, what it refuses is removed before kombu sees it, and a flood of that comes many at a
time, by a second consumer of the queue: one at a time, each would wait for the broker to hear of the last one. It ends
with the first that is not refused; what was sent beyond that is given back as whatever finds no place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from struct import unpack_from
from typing import Any, Final
from uuid import uuid4

from amqp import spec
from amqp.basic_message import Message
from amqp.exceptions import UnexpectedFrame
from kombu.transport import pyamqp

from jobqueue.brokers.copies import KEPT_BYTES, LARGEST_BYTES, unreadable

# Its stubs know a small part of it.
_kombu: Any = pyamqp
_Content: Any = Message
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_WITH_CONTENT: Final = (spec.Basic.Return, spec.Basic.Deliver, spec.Basic.GetOk)
# Of a delivery's arguments: the method's number, the consumer's tag after its length, a number and a bit.
_TAG_LENGTH_AT: Final = 4
_UNTIL_NAMES: Final = 14
_NO_NAMES: Final = b"\0\0"
# So many refused in a row are a flood, and so many of that are sent at a time.
_FLOOD: Final = 8
_MOST_AT_A_TIME: Final = 64


class Incoming(_Content):  # type: ignore[misc]  # a class, untyped
    """A message that arrives."""

    def _load_properties(self, class_id: int, buf: bytes, offset: int) -> int:
        try:
            return int(super()._load_properties(class_id, buf, offset))
        except Exception:  # noqa: BLE001 - whatever a stranger has made of it: the consumer refuses what says nothing
            self.properties = unreadable()
            return len(buf)

    def inbound_body(self, buf: bytes) -> None:
        """Take a piece of the body."""
        if self.body_size <= LARGEST_BYTES:
            super().inbound_body(buf)
            return
        room = KEPT_BYTES - self.body_received
        self.body_received += len(buf)
        if room > 0:
            self._pending_chunks.append(bytes(buf[:room]))
        if self.body_received >= self.body_size:
            self.body = b"".join(self._pending_chunks)
            self.properties, self.ready = unreadable(self.body_size), True


@dataclass(kw_only=True)
class _Consumed:
    """A queue that is consumed; `consume` does so once more, by another tag, which `more` is until that has ended."""

    queue: str
    consume: Callable[[str], Any]
    refused_in_a_row: int = 0
    more: str = ""
    is_ending: bool = False
    is_over: bool = False


class Channel(_kombu.Channel):  # type: ignore[misc]  # a class, untyped
    """A channel that believes nothing of what a message says of itself."""

    def __init__(self, connection: Any, channel_id: int | None = None, **options: Any) -> None:
        # A body stays what it is: decoding some texts takes the square of their length.
        super().__init__(connection, channel_id, **{**options, "auto_decode": False})
        self._consumed: dict[str, _Consumed] = {}
        self._prefetch_count = 0

    def basic_qos(self, prefetch_size: int, prefetch_count: int, a_global: bool, **options: Any) -> Any:  # noqa: FBT001 - the library's
        """Say how much may be sent ahead to whoever consumes from now on."""
        self._prefetch_count = prefetch_count
        return super().basic_qos(prefetch_size, prefetch_count, a_global, **options)

    def basic_consume(
        self, queue: str = "", consumer_tag: str = "", *, callback: Any = None, no_ack: bool = False, **options: Any
    ) -> Any:
        """Consume a queue, and remember it by the tag that its deliveries carry."""
        begin = partial(super().basic_consume, queue, no_ack=no_ack, **options)
        consumed = _Consumed(queue=queue, consume=lambda tag: begin(tag, callback=screened, nowait=True))
        screened = callback if no_ack else partial(self._screen, consumed, callback)
        self._consumed[consumer_tag] = consumed
        return begin(consumer_tag, callback=screened)

    def basic_cancel(self, consumer_tag: str) -> None:
        """Consume a queue no longer; what was sent before the broker knows is delivered before this returns."""
        if consumed := self._consumed.get(consumer_tag):
            consumed.is_over = True
            self._adapt(consumed)
        if self.connection:
            self.send_method(spec.Basic.Cancel, "sb", (consumer_tag, False))
        # The library takes any answer for its own, and the end of many at a time is answered too.
        while self.connection and consumer_tag in self.callbacks:
            self.connection.drain_events()

    def _on_basic_cancel_ok(self, consumer_tag: str) -> None:
        super()._on_basic_cancel_ok(consumer_tag)
        consumed = self._consumed.pop(consumer_tag, None)
        if consumed and consumed.more == consumer_tag:
            consumed.more, consumed.is_ending = "", False

    def _screen(self, consumed: _Consumed, deliver: Callable[[Any], None], message: Any) -> None:
        if self._is_refused(message):
            self.basic_ack(message.delivery_tag)
            consumed.refused_in_a_row += 1
        else:
            deliver(message)
            consumed.refused_in_a_row = 0
        self._adapt(consumed)

    def _is_refused(self, message: Any) -> bool:
        client = self.connection.client  # none while the connection is being closed
        is_refused = client and client.transport.is_refused
        return bool(is_refused and is_refused(self.message_to_python(message)))

    def _adapt(self, consumed: _Consumed) -> None:
        """Begin to take many at a time, or end it, without waiting: what comes meanwhile could do the same, and so on.

        Nor does it begin again before the last time has ended, or what is sent ahead would grow with each.
        """
        is_flooded = consumed.refused_in_a_row >= _FLOOD and not consumed.is_over
        if is_flooded and not consumed.more:
            # RabbitMQ 3.10 fails when a tag of a quorum queue is used again.
            consumed.more = str(uuid4())
            self._consumed[consumed.more] = consumed
            self._tell_prefetch(_MOST_AT_A_TIME)
            consumed.consume(consumed.more)
            self._tell_prefetch(self._prefetch_count)
        elif consumed.more and not (is_flooded or consumed.is_ending) and self.connection:
            consumed.is_ending = True
            self.send_method(spec.Basic.Cancel, "sb", (consumed.more, False))

    def _tell_prefetch(self, count: int) -> None:
        """Say how much may be sent ahead, without waiting: nothing may come between this and who is to consume."""
        self.send_method(spec.Basic.Qos, "lBb", (0, count, False))

    def dispatch_method(self, method_sig: Any, payload: bytes, content: Any) -> Any:
        """Do what the broker asks for."""
        if method_sig == spec.Basic.Deliver:
            names_at = _UNTIL_NAMES + payload[_TAG_LENGTH_AT]
            if not payload[names_at:].isascii():
                payload = payload[:names_at] + _NO_NAMES
        return super().dispatch_method(method_sig, payload, content)

    def _on_basic_deliver(
        self,
        consumer_tag: str,
        delivery_tag: int,
        redelivered: bool,  # noqa: FBT001 - the library's
        exchange: str,
        routing_key: str,
        msg: Any,
    ) -> None:
        consumed = self._consumed.get(consumer_tag)
        queue = consumed.queue if consumed else routing_key
        super()._on_basic_deliver(consumer_tag, delivery_tag, redelivered, exchange, queue, msg)


class _Frames:
    """Puts the frames of each channel together."""

    def __init__(self, connection: Any, callback: Callable[..., object]) -> None:
        self._connection, self._callback = connection, callback
        self._begun: dict[int, Incoming] = {}
        self._expected: dict[int, int] = {}

    def __call__(self, frame: tuple[int, int, bytes]) -> bool:
        """Take the next frame; tells whether something is complete with it."""
        kind, channel, payload = frame
        self._connection.bytes_recv += 1
        if kind == _HEARTBEAT:
            return False
        if kind != self._expected.get(channel, _METHOD):
            raise UnexpectedFrame(f"a frame of type {kind}, {self._expected.get(channel, _METHOD)} was to come")
        if kind == _METHOD:
            method = unpack_from(">HH", payload)
            if method not in _WITH_CONTENT:
                self._callback(channel, method, payload, None)
                return True
            self._begun[channel] = Incoming(frame_method=method, frame_args=payload)
            self._expected[channel] = _HEADER
            return False
        return self._gather(channel, payload, is_header=kind == _HEADER)

    def _gather(self, channel: int, payload: bytes, *, is_header: bool) -> bool:
        content: Any = self._begun[channel]
        if is_header:
            content.inbound_header(payload)
            self._expected[channel] = _BODY
        else:
            content.inbound_body(payload)
        if not content.ready:
            return False
        del self._begun[channel], self._expected[channel]
        self._callback(channel, content.frame_method, content.frame_args, content)
        return True


class Connection(_kombu.Connection):  # type: ignore[misc]  # a class, untyped
    """A connection of such channels."""

    Channel = Channel

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "frame_handler": _Frames})


class Transport(_kombu.Transport):  # type: ignore[misc]  # a class, untyped
    """kombu's transport over these connections.

    Attributes:
        is_refused: what a worker screens with: tells of a message that it was counted and is to be removed.
    """

    Connection = Connection
    is_refused: Callable[[Any], bool] | None = None
