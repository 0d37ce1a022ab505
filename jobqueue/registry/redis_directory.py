"""What operators publish, in Redis: one hash."""

from collections.abc import Mapping
from typing import Final

from jobqueue.registry.redis_client import RedisClient, as_bytes

_DIRECTORY: Final = "jobqueue:directory"


class RedisDirectory:
    """`Directory` over Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def put(self, documents: Mapping[str, bytes], *, seen: Mapping[str, bytes]) -> bool:
        """Keep the documents of some operators, unless one was replaced since it was seen."""
        triples = ((as_bytes(name), seen.get(name, b""), document) for name, document in documents.items())
        return bool(self._client.run("publish", *(part for triple in triples for part in triple)))

    def documents(self) -> dict[str, bytes]:
        """Return the documents, by operator."""
        (found,) = self._client.ask(("HGETALL", _DIRECTORY))
        return {operator.decode("utf-8", "replace"): document for operator, document in found.items()}
