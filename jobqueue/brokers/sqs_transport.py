"""What Celery uses as its transport for SQS, in place of kombu's own.

kombu's ends the worker on one server error, stops asking a queue that was deleted for a moment, creates and lists
queues, takes one message from each queue at a time, and carries neither events nor remote control. This one stands on
kombu's virtual transport: what is sent to a queue goes to SQS, what is sent to an exchange goes over the bus, and what
comes from either is handed on by the thread that consumes.

Where a worker screens what comes, it gets as many at a time as SQS gives while all of them are refused: each one alone
would cost as many requests. What comes behind them and finds no place goes back at once.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final

from kombu.transport import virtual

from jobqueue.brokers.bus import Bus
from jobqueue.brokers.copies import as_message
from jobqueue.brokers.sqs_client import MAX_MESSAGE_BYTES, Receipt, SqsServer
from jobqueue.brokers.sqs_deliveries import RECEIPT, receipt_of
from jobqueue.brokers.sqs_receiver import Question, Receiver
from jobqueue.errors import BrokerUnavailable, InvalidSpec, Problem
from jobqueue.routing import served_queue

log = logging.getLogger(__name__)

_LARGEST_BATCH: Final = 10


class Channel(virtual.Channel):
    """A channel: queues without bindings lie at SQS, queues bound to an exchange hear the bus."""

    connection: Any
    supports_fanout = True

    @property
    def server(self) -> SqsServer:
        """Where the queues lie."""
        server: SqsServer = self.connection.server
        return server

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **_: Any) -> None:
        """Send to a queue, confirmed by SQS; or tell all who listen to an exchange."""
        self._inplace_augment_message(message, exchange, routing_key)
        if exchange:
            self.connection.bus.publish(exchange, message)
        else:
            self._put(routing_key, message)

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - kombu's
        """Delete the message; one that SQS does not delete now comes back, and is found to be done."""
        receipt = self._receipt(delivery_tag)
        try:
            if receipt:
                self.server.delete(receipt)
        except BrokerUnavailable as error:
            log.warning("delivery.not_acknowledged", extra={"error": error.message})
        finally:
            self.qos.ack(delivery_tag)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's signature
        """Give the message back at once; without `requeue`, when its time is over. Nothing is deleted."""
        receipt = self._receipt(delivery_tag)
        if receipt and requeue:
            self.connection.give_back([receipt])
        self.qos.ack(delivery_tag)

    def asked_queues(self) -> list[str]:
        """Return the queues at SQS that this channel consumes, when it has room for a message."""
        qos: Any = self.qos
        if not qos.can_consume():
            return []
        return [queue for queue in self._active_queues if not self._is_bound(queue)]

    def room(self) -> int:
        """Return how many messages it may be given at once."""
        qos: Any = self.qos
        estimate = qos.can_consume_max_estimate()
        return _LARGEST_BATCH if estimate is None else max(1, min(estimate, _LARGEST_BATCH))

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        body = json.dumps(message)
        if len(body) > MAX_MESSAGE_BYTES:
            size = f"{len(body)} bytes as a message at SQS, {MAX_MESSAGE_BYTES} are allowed"
            raise InvalidSpec([Problem(path="", message=f"{size} (put what is long into files of the workspace)")])
        self.server.send(queue, body)

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:  # noqa: ARG002 - kombu's signature
        for receipt in self.server.receive(queue):
            return to_payload(receipt)
        raise Empty

    def _queue_bind(self, exchange: str, *_: Any) -> None:
        self.connection.listen(exchange)

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return self.server.exists(queue)

    def _size(self, queue: str) -> int:  # noqa: ARG002 - asked for each declaration, used by nobody
        return 0

    def _purge(self, queue: str) -> int:
        if not self._is_bound(queue):
            self.server.on_queue("purge_queue", queue)
        return 0

    def _delete(self, *_: Any, **__: Any) -> None:
        """Do nothing: operators delete queues, and what is bound to an exchange is no queue at SQS."""

    def _restore(self, message: Any) -> None:
        receipt = receipt_of(message.properties)
        if receipt:
            self.connection.give_back([receipt])

    def _is_bound(self, queue: str) -> bool:
        return bool(self.connection.state.queue_index.get(queue))

    def _receipt(self, delivery_tag: str) -> Receipt | None:
        try:
            return receipt_of(self.qos.get(delivery_tag).properties)
        except KeyError:
            return None


class Transport(virtual.Transport):
    """One connection of Celery's: its channels, its one receiving thread, and what that has brought.

    Attributes:
        is_refused: what a worker screens with: tells of a message that it was counted and is to be removed.
    """

    client: Any
    channels: Any
    state: Any
    _callbacks: Any
    is_refused: Callable[[Any], bool] | None = None
    Channel = Channel
    can_parse_url = True
    driver_type = driver_name = "jobqueue-sqs"
    connection_errors = (*virtual.Transport.connection_errors, BrokerUnavailable)
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"])
    )

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self._arrived: SimpleQueue[Callable[[], bool]] = SimpleQueue()
        self._receiver: Receiver | None = None
        self._is_asking = self._is_flooded = False
        self._heard: set[str] = set()
        self._is_closed = threading.Event()
        self._loop: Any = None

    @property
    def server(self) -> SqsServer:
        """Where the queues lie; Celery also makes connections without options, only to show their address."""
        server: SqsServer = self.client.transport_options["server"]
        return server

    @property
    def bus(self) -> Bus:
        """What carries events and remote control."""
        bus: Bus = self.client.transport_options["bus"]
        return bus

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Hand on what comes on the main loop of a worker, which never waits for SQS or the bus."""
        del connection
        self.bus.relay()
        self._loop = loop
        loop.on_tick.add(self._ask)

    def drain_events(self, connection: Any, timeout: float | None = None, **_: Any) -> None:
        """Hand one message on.

        Raises:
            TimeoutError: none came.
        """
        del connection
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self._ask()
            left = until - time.monotonic()
            try:
                arrive = self._arrived.get(timeout=None if math.isinf(left) else max(0.0, left))
            except Empty:
                raise TimeoutError from None
            if arrive():
                return

    def listen(self, exchange: str) -> None:
        """Hear what is said to an exchange from now on."""
        if exchange not in self._heard:
            self._heard.add(exchange)
            self.bus.listen(exchange, partial(self._on_heard, exchange), until=self._is_closed)

    def give_back(self, receipts: Sequence[Receipt]) -> None:
        """Let others have messages at once, as far as SQS answers; else they have them later. Any thread."""
        try:
            self.server.give_back_all(receipts)
        except Exception as error:  # noqa: BLE001 - whatever the library raises would end the receiving thread
            log.warning("delivery.not_given_back", extra={"error": str(error)})

    def close_connection(self, connection: Any) -> None:
        """Stop asking; what has come and was not handed on is given back."""
        self._is_closed.set()
        if self._loop is not None:
            self._loop.on_tick.discard(self._ask)
        if self._receiver is not None:
            self._receiver.close()
        self._take_all()
        super().close_connection(connection)

    def _ask(self) -> None:
        """Ask SQS for messages, when there is room for one and no question is open."""
        if self._is_asking or self._is_closed.is_set():
            return
        asking = [(channel, queues) for channel in self.channels if (queues := channel.asked_queues())]
        if not asking:
            return
        if self._receiver is None:
            self._receiver = Receiver(self.server, on_answer=self._on_answer)
        self._is_asking = True
        queues = tuple(queue for _, queues in asking for queue in queues)
        room = min(channel.room() for channel, _ in asking)
        self._receiver.ask(Question(queues=queues, count=_LARGEST_BATCH if self._is_flooded else room))

    def _on_answer(self, receipts: Sequence[Receipt]) -> None:
        # Here, on the receiving thread: the consuming one may have cancelled and wait for what runs.
        wanted = [receipt for receipt in receipts if served_queue(receipt.queue) in self._callbacks]
        self.give_back([receipt for receipt in receipts if receipt not in wanted])
        self._arrive(partial(self._take, wanted))

    def _on_heard(self, exchange: str, message: dict[str, Any]) -> None:
        self._arrive(partial(self._tell, exchange, message))

    def _arrive(self, arrive: Callable[[], bool]) -> None:
        self._arrived.put(arrive)
        if self._loop is not None:
            self._loop.call_soon(self._take_all)

    def _take_all(self) -> None:
        while not self._arrived.empty():
            self._arrived.get()()

    def _take(self, receipts: Sequence[Receipt]) -> bool:
        self._is_asking = False
        handed, refused, returned = [], [], []
        for receipt in receipts:
            payload, queue = to_payload(receipt), served_queue(receipt.queue)
            if self._is_screened_out(payload):
                refused.append(receipt)
            elif not self._is_closed.is_set() and any(queue in channel.asked_queues() for channel in self.channels):
                handed.append(receipt.queue)
                self._callbacks[queue](payload)
            else:
                returned.append(receipt)
        self._is_flooded = bool(refused) and not handed and not returned
        if self._receiver and not self._is_closed.is_set():
            self._receiver.settle(handed=handed, refused=refused, returned=returned)
        else:
            self.give_back([*refused, *returned])
        return bool(handed)

    def _is_screened_out(self, payload: dict[str, Any]) -> bool:
        if self.is_refused is None or not self.channels or self._is_closed.is_set():
            return False
        return self.is_refused(Channel.Message(payload, channel=self.channels[0]))

    def _tell(self, exchange: str, message: dict[str, Any]) -> bool:
        callbacks = [self._callbacks.get(queue) for queue in self._bound(exchange, message)]
        for callback in filter(None, callbacks):
            callback(message)
        return any(callbacks)

    def _bound(self, exchange: str, message: dict[str, Any]) -> Iterator[str]:
        """Yield the queues of this connection that a message to an exchange is for."""
        declared = self.state.exchanges.get(exchange)
        if declared and self.channels:
            kind = self.channels[0].typeof(exchange)
            key = message["properties"]["delivery_info"]["routing_key"]
            yield from kind.lookup(declared["table"], exchange, key, None)


def to_payload(receipt: Receipt) -> dict[str, Any]:
    """Return a message as kombu wants it, whatever it says of itself: it came by this queue, and has this receipt."""
    message = as_message(receipt.body.encode(), queue=receipt.queue, tag=receipt.handle)
    message["properties"]["delivery_info"][RECEIPT] = receipt
    return message
