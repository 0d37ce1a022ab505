"""The store of a node that has no credentials of it: a clerk who has some grants one step at a time.

The clerk hands out URLs, which live for minutes and are asked for anew each time, so nothing expires while an
experiment waits or runs; the bytes pass between the node and the store alone. What is small the clerk does itself.
"""

import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from jobqueue.errors import (
    ArtifactRefused,
    KeyRefused,
    NotFound,
    Refused,
    RegistryUnavailable,
    StoreUnavailable,
    Superseded,
)
from jobqueue.grants import MAX_CONTENT_BYTES, Reply, Request, Verdict, Wish, read_reply, sign_request
from jobqueue.ids import ExperimentId
from jobqueue.keys import KeyRing
from jobqueue.permit import Permit
from jobqueue.quantities import describe_size
from jobqueue.storage.base import StoredObject, check_key

# A URL is for one request, and S3 takes no more in one.
MAX_UPLOAD_BYTES: Final = 5 * 2**30
ASKED_WITHIN: Final = timedelta(seconds=15)
_BUSY_SECONDS: Final = 0.2
_HINT: Final = "is `jobqueue grants serve` running, with the same registry and the keys of this node's queues?"

# Puts a question to whichever clerk there is; None when nobody has answered in time.
Ask = Callable[..., bytes | None]


class GrantedStore:
    """What one experiment may use of a store, through its clerks; `Superseded` is raised once its lease is lost.

    Args:
        ask: `ask(question, within=...)`, which raises `RegistryUnavailable`.
        keys: of this node.
        queue: the request queue that the experiment came through; its clerk has to be trusted for it.
        experiment_id: None for what concerns no experiment.
        envelope: of the experiment, which a clerk is shown until there is a permit.
        uri: the only object, whatever its key is called; empty for those of the project's own store.
        within: how long an answer is waited for.
        ca: file of the authorities that the store's certificate is checked with; empty: those of the system.
    """

    def __init__(
        self,
        ask: Ask,
        keys: KeyRing,
        *,
        queue: str = "",
        experiment_id: ExperimentId | None = None,
        envelope: bytes = b"",
        uri: str = "",
        within: timedelta = ASKED_WITHIN,
        ca: str = "",
    ) -> None:
        self.clerk = ""
        self._ask_any, self._keys, self._within, self._ca = ask, keys, within, ca
        self._queue, self._experiment_id, self._envelope, self._uri = queue, experiment_id, envelope, uri
        self._permit: Permit | None = None
        self._attempt = self._token = 0

    def scoped(self, *, queue: str, experiment_id: ExperimentId | None, envelope: bytes = b"") -> "GrantedStore":
        """Return the store as one experiment may use it."""
        return self._like(queue=queue, experiment_id=experiment_id, envelope=envelope)

    def show(self, permit: Permit | None, *, attempt: int, token: int) -> None:
        """Show this permit with every request from now on, and the lease that it is asked under."""
        self._permit, self._attempt, self._token = permit, attempt, token

    def beside(self, uri: str) -> "GrantedStore":
        """Return the store of one object that lies elsewhere, as the permit names it."""
        store = self._like(queue=self._queue, experiment_id=self._experiment_id, envelope=self._envelope, uri=uri)
        store.show(self._permit, attempt=self._attempt, token=self._token)
        return store

    def put(self, key: str, source: bytes | Path) -> None:
        """Write an object through a URL of its own."""
        from jobqueue.storage import signed_urls

        check_key(key)
        if isinstance(source, bytes):
            signed_urls.write(self._ask(Wish.WRITE, key).url, source, len(source), key=key, ca=self._ca)
            return
        with source.open("rb") as content:
            size_bytes = os.fstat(content.fileno()).st_size
            if size_bytes > MAX_UPLOAD_BYTES:
                most = describe_size(MAX_UPLOAD_BYTES)
                raise ArtifactRefused(f"it has more than the {most} that a node without credentials can store at once")
            signed_urls.write(self._ask(Wish.WRITE, key).url, content, size_bytes, key=key, ca=self._ca)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Have the clerk write an object if there is none."""
        if len(content) > MAX_CONTENT_BYTES:
            raise ArtifactRefused(f"{key} has {len(content)} bytes, a clerk writes {MAX_CONTENT_BYTES} at most")
        return self._ask(Wish.WRITE_ONCE, check_key(key), content=content).is_written

    def get(self, key: str) -> Iterator[bytes]:
        """Read an object through a URL of its own."""
        from jobqueue.storage import signed_urls

        return signed_urls.read(self._ask(Wish.READ, check_key(key)).url, key=key, ca=self._ca)

    def size(self, key: str) -> int | None:
        """Ask the clerk."""
        return self._ask(Wish.SIZE, check_key(key)).size_bytes

    def list(self, prefix: str, *, after: str = "") -> Iterator[StoredObject]:
        """Ask the clerk, one page after the other."""
        is_more = True
        while is_more:
            page = self._ask(Wish.LIST, prefix, after=after)
            for key, size_bytes in page.objects:
                yield StoredObject(key=key, size_bytes=size_bytes)
                after = key
            is_more = page.is_more and bool(page.objects)

    def presign(self, key: str, *, method: Literal["GET", "PUT"], expires: timedelta) -> str:
        """Refuse: what is granted to this node is for nobody else."""
        del method, expires
        raise StoreUnavailable(f"a node without credentials has no URLs to hand out ({key})")

    def _like(self, **scope: Any) -> "GrantedStore":
        return GrantedStore(self._ask_any, self._keys, within=self._within, ca=self._ca, **scope)

    def _ask(self, wish: Wish, key: str, **further: Any) -> Reply:
        request = Request(
            wish=wish,
            uri=self._uri or f"store:{key}",
            queue=self._queue,
            experiment_id=self._experiment_id,
            attempt=self._attempt,
            token=self._token,
            permit=self._permit,
            envelope=b"" if self._permit else self._envelope,
            **further,
        )
        ends_at = time.monotonic() + self._within.total_seconds()
        while True:
            reply = self._ask_once(request, ends_at - time.monotonic(), key)
            if reply.verdict is not Verdict.BUSY or time.monotonic() + _BUSY_SECONDS > ends_at:
                break
            time.sleep(_BUSY_SECONDS)
        self.clerk = reply.clerk
        if reply.verdict is not Verdict.GRANTED:
            _raise(reply, key)
        return reply

    def _ask_once(self, request: Request, left_seconds: float, key: str) -> Reply:
        try:
            message = sign_request(request, keys=self._keys)
            answer = self._ask_any(message, within=timedelta(seconds=left_seconds))
            if answer is None:
                raise StoreUnavailable(f"no clerk of the store answers for {key}", hint=_HINT)
            return read_reply(answer, message=message, queue=self._queue, keys=self._keys)
        except (RegistryUnavailable, NotFound, KeyRefused, Refused) as error:
            raise StoreUnavailable(f"no clerk grants {key}: {error.message}", hint=error.hint or _HINT) from None


def _raise(reply: Reply, key: str) -> NoReturn:
    told = f"{key}: {reply.text}"
    if reply.verdict is Verdict.STALE:
        raise Superseded(told)
    if reply.verdict is Verdict.REFUSED:
        raise ArtifactRefused(told, hint="a node without credentials reads and writes what the experiment is for")
    raise StoreUnavailable(told, hint=_HINT)
