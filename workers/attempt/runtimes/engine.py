"""Connections to one container engine, and its errors in our words.

The client library's sessions are not safe to share while one of them streams, so each call borrows one and gives it
back warm.
"""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from jobqueue.errors import DiskFull, RuntimeFailure

if TYPE_CHECKING:
    from docker import APIClient

_log = logging.getLogger(__name__)

_KNOCK_SECONDS = 1.0
_HINT = "is the container engine running, and may this user open its socket? `jobqueue doctor` checks both"
_DISK_FULL = ("no space left on device", "disk quota exceeded")


class Gone(RuntimeFailure):
    """The engine answers, and has no such container or image."""


class Engine:
    """One engine; its methods may be called from any thread.

    Args:
        url: such as `unix:///run/podman/podman.sock`; by default what DOCKER_HOST and its companions say.
    """

    def __init__(self, url: str | None = None) -> None:
        self._options = _make_options(url)
        self._version: str | None = None
        self._idle: list[APIClient] = []
        self._lock = Lock()

    @property
    def address(self) -> str:
        """Where it listens, as `unix://`, `ssh://`, `https://` where its certificate is checked, or `http://`."""
        from docker.utils import parse_host

        tls = self._options.get("tls")
        is_checked = tls is None or bool(tls.verify)
        address = str(parse_host(self._options["base_url"], tls=tls is not None)).removeprefix("http+")
        return address if is_checked else address.replace("https://", "http://", 1)

    @contextmanager
    def client(self, doing: str, *, timeout_seconds: int = 120) -> Iterator["APIClient"]:
        """Lend a client for one call; `doing` completes "the engine refused to ...".

        Raises:
            RuntimeFailure: whatever the client library raised inside; `Gone` for what the engine does not know.
        """
        with translated(doing):
            _knock(self.address)
            client = self._take(timeout_seconds)
            try:
                yield client
            except BaseException:
                client.close()
                raise
            with self._lock:
                self._idle.append(client)

    def close(self) -> None:
        """Close the idle connections; the engine may be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    def _take(self, timeout_seconds: int) -> "APIClient":
        with self._lock:
            client = self._idle.pop() if self._idle else None
        if client is None:
            from docker import APIClient

            client = APIClient(**self._options, version=self._version or "auto", timeout=timeout_seconds)
            self._version = client.api_version
            # The library keeps a connection per address, and each container has addresses of its own: they would pile
            # up, and the sockets that are closed by us would be among them.
            client.headers["Connection"] = "close"
        client.timeout = timeout_seconds
        return client


def _make_options(url: str | None) -> dict[str, Any]:
    from docker.constants import DEFAULT_UNIX_SOCKET
    from docker.utils import kwargs_from_env

    options: dict[str, Any] = {"base_url": url} if url else {**kwargs_from_env()}
    options.setdefault("base_url", DEFAULT_UNIX_SOCKET.replace("http+", ""))
    return options


def _knock(address: str) -> None:
    """Fail here when nobody listens: the client library leaks a socket then."""
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(_KNOCK_SECONDS)
            door.connect(address.removeprefix("unix://"))


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn the client library's errors into `RuntimeFailure`, `DiskFull` and `Gone`."""
    from docker.errors import APIError, DockerException, NotFound
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except NotFound as error:
        raise Gone(f"the engine could not {doing}: {explain(error)}") from error
    except APIError as error:
        failure = DiskFull if is_disk_full(explain(error)) else RuntimeFailure
        raise failure(f"the engine refused to {doing}: {explain(error)}") from error
    except (DockerException, RequestException, HTTPError, OSError) as error:
        _log.debug("engine.silent", extra={"doing": doing, "error": str(error)})
        raise RuntimeFailure(f"the engine did not answer when asked to {doing}: {error}", hint=_HINT) from error


def explain(error: Exception) -> str:
    """Return the engine's own words in an error of the client library."""
    return str(getattr(error, "explanation", None) or error)


def is_disk_full(failure: str) -> bool:
    """Tell whether the engine's words mean that its disk is full."""
    return any(words in failure.lower() for words in _DISK_FULL)
