"""What operators publish, in Redis: one hash."""

from typing import Final

from jobqueue.registry.redis_client import RedisClient, as_bytes

_DIRECTORY: Final = "jobqueue:directory"


class RedisDirectory:
    """`Directory` over Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def put(self, operator: str, document: bytes) -> None:
        """Keep an operator's document."""
        self._client.ask(("HSET", _DIRECTORY, as_bytes(operator), document))

    def documents(self) -> dict[str, bytes]:
        """Return the documents, by operator."""
        (found,) = self._client.ask(("HGETALL", _DIRECTORY))
        return {operator.decode("utf-8", "replace"): document for operator, document in found.items()}
