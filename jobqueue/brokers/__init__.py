"""Chooses the broker by the scheme of its URL; nothing is loaded or connected before the first use."""

from datetime import timedelta
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlsplit

from jobqueue.brokers.base import Broker
from jobqueue.errors import InvalidSetting

_SCHEMES: Final = "amqp://, amqps://, sqs://, redis://, rediss://, redis+socket://, memory://"


def open_broker(url: str, *, lease: timedelta, events_url: str = "", management_url: str = "") -> Broker:
    """Return the broker at `url`.

    Args:
        url: as in `JOBQUEUE_BROKER_URL`.
        lease: how long a worker may be silent; a delivery that nobody keeps alive comes back a little after that.
        events_url: a Redis for Celery's events and remote control, where the broker cannot carry them.
        management_url: of RabbitMQ's HTTP API, `http://user:password@host:15672`; empty: at the broker's own host.

    Raises:
        InvalidSetting: there is no broker for the scheme, what it needs is not installed, or the URL cannot be taken
            apart.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme != "sqs":  # whose keys may hold anything
        _check(url)
    if scheme in ("amqp", "amqps"):
        from jobqueue.brokers.rabbitmq import RabbitBroker

        return RabbitBroker(url, management_url=management_url)
    if scheme in ("redis", "rediss", "redis+socket"):
        from jobqueue.brokers.redis import RedisBroker

        return RedisBroker(url, lease=lease)
    if scheme == "sqs":
        if find_spec("botocore") is None:  # it is loaded with the first question, too late to say so
            raise InvalidSetting("Amazon SQS needs botocore, which is not here", hint="pip install 'jobqueue[sqs]'")
        from jobqueue.brokers.sqs import SqsBroker

        return SqsBroker(url, lease=lease, events_url=events_url)
    if scheme == "memory":
        from jobqueue.brokers.memory import MemoryBroker

        return MemoryBroker()
    # The rest of the URL may hold a password.
    shown = f"{scheme}://…" if scheme else "…"
    raise InvalidSetting(f"not the URL of a broker: '{shown}' (use one of {_SCHEMES})")


def _check(url: str) -> None:
    """Refuse what would upset a library later; what that says might quote a part of the password."""
    try:
        for server in url.split(";"):
            _ = urlsplit(server).port
    except ValueError:
        raise InvalidSetting(
            "the broker's URL cannot be used",
            hint="write it as amqp://user:password@host:5672/vhost, with special characters of the password as %40",
        ) from None
