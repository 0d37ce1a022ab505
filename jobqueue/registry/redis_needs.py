"""What queues ask for, in Redis: a hash of each queue, which expires."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, Final

from jobqueue.registry.needs import LEARNT_FOR
from jobqueue.registry.redis_client import RedisClient, as_bytes
from jobqueue.registry.redis_fields import milliseconds
from jobqueue.resources import Resources

_AMOUNTS: Final = tuple(field.name for field in fields(Resources))


class RedisNeeds:
    """`Needs` over Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def note(self, queue: str, resources: Resources) -> None:
        """Note what one message asks for."""
        amounts = [text for name, amount in asdict(resources).items() for text in (name, repr(amount))]
        self._client.run("note_need", as_bytes(queue), milliseconds(LEARNT_FOR), *amounts)

    def known(self, queues: Sequence[str] = ()) -> dict[str, Resources]:
        """Return what is known, by queue."""
        flat = self._client.run("needs", *map(as_bytes, queues))
        found = zip(flat[::2], flat[1::2], strict=True)
        return {queue.decode(): _parse(amounts) for queue, amounts in found}


def _parse(flat: Sequence[bytes]) -> Resources:
    told = {name.decode(): float(amount) for name, amount in zip(flat[::2], flat[1::2], strict=True)}
    amounts: dict[str, Any] = {name: int(told[name]) for name in _AMOUNTS if name in told}
    return Resources(**{**amounts, "cpus": told["cpus"]})
