"""Chooses the broker by the scheme of its URL; nothing is loaded or connected before the first use."""

from datetime import timedelta
from typing import Final

from jobqueue.brokers.base import Broker
from jobqueue.errors import InvalidSetting

_SCHEMES: Final = "amqp://, amqps://, redis://, rediss://, redis+socket://, memory://"


def open_broker(url: str, *, lease: timedelta) -> Broker:
    """Return the broker at `url`.

    Args:
        url: as in `JOBQUEUE_BROKER_URL`.
        lease: how long a worker may be silent; a delivery that nobody keeps alive comes back a little after that.

    Raises:
        InvalidSetting: there is no broker for the scheme.
    """
    scheme = url.partition("://")[0]
    if scheme in ("amqp", "amqps"):
        from jobqueue.brokers.rabbitmq import RabbitBroker

        return RabbitBroker(url)
    if scheme in ("redis", "rediss", "redis+socket"):
        from jobqueue.brokers.redis import RedisBroker

        return RedisBroker(url, lease=lease)
    if scheme == "memory":
        from jobqueue.brokers.memory import MemoryBroker

        return MemoryBroker()
    raise InvalidSetting(*_refusal(scheme if "://" in url else ""))


def _refusal(scheme: str) -> tuple[str]:
    # The rest of the URL may hold a password.
    if scheme == "sqs":
        return ("this version has no broker for sqs:// yet: use RabbitMQ or Redis",)
    return (f"not the URL of a broker: '{scheme}://…' (use one of {_SCHEMES})",)
