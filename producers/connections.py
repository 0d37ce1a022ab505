"""What one client holds open: each server is connected when first used, kept, and connected anew in a forked child."""

import concurrent.futures
import hashlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.config import Settings
from jobqueue.errors import JobqueueError, NotFound
from jobqueue.ids import ExperimentId
from jobqueue.keys import KeyRing, ensure_laptop_keys
from jobqueue.registry import open_registry
from jobqueue.registry.base import Registry
from jobqueue.storage import open_store
from jobqueue.storage.base import Store

if TYPE_CHECKING:
    from celery import Celery

T = TypeVar("T")
_ELSEWHERE: Final = "was it submitted with other settings? Client(settings).get(id) asks another registry"


def uninterrupted(make: Callable[[], T]) -> T:
    """Return what `make` returns; Ctrl-C ends only the waiting for it.

    The first use imports libraries, and one that was interrupted half-way may not be importable again in this process.
    """
    made: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where it is waited for
            made.set_exception(error)

    threading.Thread(target=run, name="jobqueue-opening", daemon=True).start()
    return made.result()


def without_password(url: str) -> str:
    """Return the address of a server as it may be shown."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{credentials.partition(':')[0]}{at}{host}"


class Closeable(Protocol):
    """What has to be closed."""

    def close(self) -> None:
        """Close it."""
        ...


class Connections:
    """The registry, the broker and the store of one client. Safe in threads.

    Args:
        settings: where they are.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.RLock()
        self._opened: dict[str, object] = {}
        self._is_closed = False
        _living.add(self)

    @property
    def registry(self) -> Registry:
        """The registry."""
        return self.once("registry", lambda: open_registry(self.settings.registry))

    @property
    def registry_name(self) -> str:
        """The registry's address without its password, for people."""
        return without_password(self.settings.registry)

    def unknown(self, experiment_id: ExperimentId, *, is_wiped: bool = False) -> NotFound:
        """Return what to raise where the registry knows no such experiment; one that did may have been wiped."""
        hint = "if it was wiped, the experiment ends all the same: wait()" if is_wiped else _ELSEWHERE
        return NotFound(f"the registry {self.registry_name} does not know {experiment_id}", hint=hint)

    @property
    def site(self) -> str:
        """A few letters that are the same for all who name the same registry; they tell nothing else."""
        return hashlib.sha256(self.registry_name.encode()).hexdigest()[:8]

    @property
    def is_closed(self) -> bool:
        """Tell whether nothing can be asked over it any more."""
        return self._is_closed

    @property
    def broker(self) -> Broker:
        """The broker."""
        return self.once("broker", lambda: open_broker(self.settings.broker, lease=self.settings.lease))

    @property
    def app(self) -> "Celery":
        """The Celery application."""
        from jobqueue.application import make_app

        return self.once("app", lambda: make_app(self.settings))

    @property
    def store(self) -> Store:
        """The project's own store."""
        return self.once("store", lambda: open_store(self.settings.storage, endpoint=self.settings.store_endpoint))

    @property
    def keys(self) -> KeyRing:
        """The keys; a laptop that is its own node gets some when it has none."""
        return self.once("keys", self._open_keys)

    def _open_keys(self) -> KeyRing:
        if not self.settings.broker_url or self.settings.broker.startswith("memory"):
            ensure_laptop_keys(self.settings.keys_dir, passphrase=self.settings.keys_passphrase)
        return KeyRing.of(self.settings, shown=self._read_directory)

    def _read_directory(self) -> dict[str, bytes]:
        return self.registry.directory.documents()

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` made the first time that `name` was asked for in this process.

        Raises:
            JobqueueError: the client has been closed.
        """
        try:
            return cast("T", self._opened[name])
        except KeyError:
            pass
        with self._lock:
            if self._is_closed:
                raise JobqueueError("this client has been closed", hint="make another one: Client()")
            if name not in self._opened:
                self._opened[name] = uninterrupted(make)
            return cast("T", self._opened[name])

    def forget(self, name: str) -> object:
        """Take something out, so that it is made anew when it is next asked for; None when it was not made."""
        with self._lock:
            return self._opened.pop(name, None)

    def close(self) -> None:
        """Close what is open; closing again changes nothing."""
        with self._lock:
            self._is_closed = True
            opened, self._opened = self._opened, {}
        for name in ("app", "broker", "registry"):
            if name in opened:
                cast("Closeable", opened[name]).close()

    def start_in_child(self) -> None:
        """Leave the parent's connections alone and begin with none."""
        _inherited.append(self._opened)
        self._lock = threading.RLock()
        self._opened = {}


_living: Final[weakref.WeakSet[Connections]] = weakref.WeakSet()
# A forked child's share of its parent's connections: to drop it would close sockets that the parent still uses.
_inherited: Final[list[object]] = []


def _start_all_in_child() -> None:
    for connections in list(_living):
        connections.start_in_child()


os.register_at_fork(after_in_child=_start_all_in_child)
