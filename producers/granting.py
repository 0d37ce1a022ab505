"""Serving a clerk: it opens no port, but takes questions out of the registry and puts its answers there.

Any number may serve one registry: each question is taken by one of them.
"""

import logging
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from jobqueue.errors import ArtifactRefused, InvalidSetting, RegistryUnavailable, StoreUnavailable
from jobqueue.keys import KeyRing
from jobqueue.registry.base import Registry
from jobqueue.registry.calls import Calls
from jobqueue.storage import Allowed, locate, open_store, own_bucket
from jobqueue.storage.base import PROBE, Store, check_store
from producers.clerk import URL_LIFE, Clerk

if TYPE_CHECKING:
    from jobqueue.config import Settings

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
_LOOK: Final = timedelta(seconds=1)
_LOOK_AGAIN: Final = timedelta(seconds=3)


def open_clerk(settings: "Settings", registry: Registry, *, keys: KeyRing, name: str) -> Clerk:
    """Return a clerk of the store that the settings name.

    Raises:
        InvalidSetting: the store has no URLs to hand out, or overwrites what must be written once.
        StoreUnavailable: it does not answer.
        NotFound, KeyRefused: there is no key to sign replies with.
    """
    keys.clerk()
    store = open_store(settings.storage, endpoint=settings.store_endpoint)
    try:
        store.presign(PROBE, method="GET", expires=URL_LIFE)
    except StoreUnavailable as error:
        hint = "set JOBQUEUE_STORAGE_URL to an s3:// address, and AWS_* to its credentials"
        raise InvalidSetting(f"nothing can be granted of this store: {error.message}", hint=hint) from None
    check_store(store)
    buckets = (*own_bucket(settings.storage), *settings.input_buckets)
    allowed = Allowed(endpoint=settings.store_endpoint, buckets=buckets)

    def find(uri: str) -> tuple[Store, str]:
        if not uri.startswith(("store:", "s3://")):
            raise ArtifactRefused("it lies in no store of the clerk's")
        place, key = locate(uri, default=store, allowed=allowed)
        return cast("Store", place), key

    return Clerk(store, locate=find, registry=registry, keys=keys, name=name)


def serve(clerk: Clerk, calls: Calls, *, stop: threading.Event) -> None:
    """Answer until `stop` is set; a registry that is away is waited for."""
    threads = [
        threading.Thread(target=_serve, args=(clerk, calls, stop), name=f"clerk-{number}") for number in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    _join(threads)


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        while thread.is_alive():  # in short steps, so that a signal is seen meanwhile
            thread.join(0.2)


def _serve(clerk: Clerk, calls: Calls, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            call = calls.take(within=_LOOK)
            if call:
                calls.answer(call, clerk.answer(call.question))
        except RegistryUnavailable as error:
            log.warning("grants.registry_away error=%s", error.message)
            stop.wait(_LOOK_AGAIN.total_seconds())
        except Exception:  # one question that upsets it must not end the service of all
            log.exception("grants.failed")
