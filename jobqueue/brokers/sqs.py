"""Amazon SQS: a delivery stays away from others while it is kept alive, and is put off by the same means.

Nothing is sent anew to put a delivery off. Only a run that is longer than SQS lets one delivery last goes on under a
copy of its message. Celery's events and remote control, which SQS cannot carry, travel over a bus of their own.
"""

from datetime import timedelta
from typing import Any, Final

from jobqueue.brokers.base import Deliveries, Line, Post, Queues, Survey
from jobqueue.brokers.bus import Bus
from jobqueue.brokers.lines import BatchLine
from jobqueue.brokers.sqs_address import parse_address
from jobqueue.brokers.sqs_client import SqsServer
from jobqueue.brokers.sqs_deliveries import SqsDeliveries
from jobqueue.brokers.sqs_post import SqsPost
from jobqueue.brokers.sqs_queues import SqsQueues
from jobqueue.brokers.sqs_survey import SqsSurvey

_SCHEME: Final = "jobqueue-sqs"
_TRANSPORT: Final = "jobqueue.brokers.sqs_transport:Transport"


class SqsBroker:
    """Amazon SQS with standard queues, or a server that speaks its language.

    Args:
        url: see `parse_address`.
        lease: a delivery that nobody keeps alive comes back about one of them after it was received.
        events_url: the Redis over which Celery's events and remote control go; empty: they go nowhere.
    """

    is_pushing = False
    is_charging = True

    def __init__(self, url: str, *, lease: timedelta, events_url: str = "") -> None:
        self._address = parse_address(url)
        self._server = SqsServer(self._address, visibility=lease)
        self._bus = Bus(events_url)
        self._post = SqsPost(self._server)
        queues = SqsQueues(self._server)
        self.queues: Queues = queues
        self.survey: Survey = SqsSurvey(self._server, queues, asks_per_second=self._address.asks)
        self.deliveries: Deliveries = SqsDeliveries(self._server)
        self.post: Post = self._post

    def celery_settings(self) -> dict[str, Any]:
        """Return how Celery is to connect: by a transport of our own, which is handed the server and the bus."""
        from kombu.transport import TRANSPORT_ALIASES

        TRANSPORT_ALIASES[_SCHEME] = _TRANSPORT
        return {
            # Without credentials: the server has them.
            "broker_url": f"{_SCHEME}://{self._address.endpoint.partition('://')[2] or 'aws'}",
            "broker_transport_options": {"server": self._server, "bus": self._bus},
        }

    def request_queue(self, name: str) -> Any:
        """Return the `kombu.Queue`; the default exchange leads straight to the queue of that name."""
        from kombu import Exchange, Queue

        return Queue(name, Exchange(""), routing_key=name, no_declare=True)

    def consumed(self, name: str) -> list[Any]:
        """Return the one `kombu.Queue`: the receiver asks for what is served before it by itself."""
        return [self.request_queue(name)]

    def line(self, connection: Any) -> Line:
        """Return a way into the request queues."""
        return BatchLine(connection)

    def close(self) -> None:
        """Close its connections; mail that was not acknowledged comes back."""
        self._post.close()
        self._bus.close()
        self._server.close()
