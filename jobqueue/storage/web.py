"""Inputs from the web: read from a host that the operator allows, at an address that was checked, within limits.

A name is resolved once and the connection goes to what was checked, so that a second answer of its name server changes
nothing. Neither proxies nor compression nor cookies: what arrives is what the server has.
"""

import errno
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urljoin

from jobqueue.errors import ArtifactRefused, NotFound, StoreUnavailable
from jobqueue.quantities import format_duration
from jobqueue.storage.hosts import SETTING, Host, Target, find_host, parse_target

_MAX_REDIRECTS: Final = 3
_PIECE_BYTES: Final = 1 << 20
_SILENCE: Final = timedelta(seconds=30)
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_GONE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_BUSY: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_AGAIN: Final = "is the server running?"


@dataclass(frozen=True, kw_only=True)
class WebFile:
    """What lies at one web address.

    Attributes:
        target: the address.
        hosts: what may be read from; redirects too lead nowhere else.
        within: how long all of it may take.
    """

    target: Target
    hosts: Sequence[Host]
    within: timedelta

    def get(self, key: str) -> Iterator[bytes]:
        """Return the content in pieces; `key` is what the address is called in errors.

        Raises:
            ArtifactRefused: it leads where it may not, or the server refuses it, or takes too long.
            NotFound: the server does not have it.
            StoreUnavailable: the server does not answer, or breaks off.
        """
        ends_at_seconds = time.monotonic() + self.within.total_seconds()
        target = self.target
        for _ in range(_MAX_REDIRECTS + 1):
            with (
                _translated(key, self.within, ends_at_seconds),
                _connected(target, self.hosts, ends_at_seconds) as line,
                _ask(line, target) as response,
            ):
                if response.status not in _MOVED:
                    _require_content(response, key)
                    yield from _pieces(response, ends_at_seconds)
                    return
                target = _follow(target, response)
        raise ArtifactRefused(f"{key} leads on more than {_MAX_REDIRECTS} times", hint="use the address it ends at")


def open_web_file(url: str, *, hosts: Sequence[Host], within: timedelta) -> tuple[WebFile, str]:
    """Return what lies at a URL, and how it is called; nothing is asked yet.

    Raises:
        ArtifactRefused: it is no URL, or leads where it may not.
    """
    target = parse_target(url)
    find_host(target, hosts)
    return WebFile(target=target, hosts=hosts, within=within), target.shown


@contextmanager
def _connected(target: Target, hosts: Sequence[Host], ends_at_seconds: float) -> Iterator[http.client.HTTPConnection]:
    """Connect to an address that was checked; the connection is cut at the end of the time, whoever is silent then."""
    addresses = _resolve(target, find_host(target, hosts), _bear(ends_at_seconds))
    line = http.client.HTTPConnection(target.name, target.port)
    plain = _connect(addresses, _bear(ends_at_seconds))
    # A descriptor of its own: the library gives the first one away and closes it as it likes.
    cutter = socket.socket(fileno=os.dup(plain.fileno()))
    timer = threading.Timer(_left(ends_at_seconds), _cut, [cutter])
    timer.daemon = True
    timer.start()
    try:
        with plain:
            line.sock = _secured(plain, target) if target.scheme == "https" else plain
            with line.sock:
                yield line
    finally:
        timer.cancel()
        timer.join()
        line.close()
        cutter.close()


def _cut(line: socket.socket) -> None:
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is over already


def _left(ends_at_seconds: float) -> float:
    return max(0.0, ends_at_seconds - time.monotonic())


def _bear(ends_at_seconds: float) -> float:
    """Return for how many seconds somebody may be silent."""
    return min(_left(ends_at_seconds), _SILENCE.total_seconds())


def _resolve(target: Target, host: Host, seconds: float) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """Return where a name leads, each address of it checked.

    Raises:
        ArtifactRefused: one of them is not for experiments.
        OSError: no name server knows it, or answers in so many seconds.
    """
    answer: Future[list[Any]] = Future()
    # Of its own, because there is no other way to stop waiting; it ends when the system's resolver gives up.
    threading.Thread(target=_look_up, args=(target, answer), name="look-up", daemon=True).start()
    try:
        found = answer.result(timeout=seconds)
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"no name server tells where {target.name} is") from None
    addresses = dict.fromkeys((family, (str(where[0]), target.port)) for family, _, _, _, where in found)
    for _, (address, _) in addresses:
        if not host.allows(ipaddress.ip_address(address)):
            raise ArtifactRefused(
                f"{target.name} leads to {address}, where this node reads nothing unless {SETTING} says so",
                hint=f"where that is meant, have its operator add {target.name}={address}",
            )
    return list(addresses)


def _look_up(target: Target, answer: "Future[list[Any]]") -> None:
    try:
        answer.set_result(socket.getaddrinfo(target.name, target.port, type=socket.SOCK_STREAM))
    except BaseException as error:  # noqa: BLE001 - handed to the waiting thread as it is
        answer.set_exception(error)


def _connect(addresses: Sequence[tuple[socket.AddressFamily, tuple[str, int]]], seconds: float) -> socket.socket:
    error = OSError("it has no address")
    for family, where in addresses:
        line = socket.socket(family, socket.SOCK_STREAM)
        try:
            line.settimeout(seconds / len(addresses))
            line.connect(where)
            line.settimeout(seconds)
        except OSError as failed:
            line.close()
            error = failed
        else:
            return line
    raise error


def _secured(line: socket.socket, target: Target) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    # An end without a word is not the end of the content.
    return context.wrap_socket(line, server_hostname=target.name, suppress_ragged_eofs=False)


def _ask(line: http.client.HTTPConnection, target: Target) -> http.client.HTTPResponse:
    headers = {"Host": target.origin.partition("://")[2], "Accept-Encoding": "identity", "User-Agent": "jobqueue"}
    line.request("GET", target.path, headers={**headers, "Connection": "close"})
    return line.getresponse()


def _follow(target: Target, response: http.client.HTTPResponse) -> Target:
    try:
        location = urljoin(target.origin + target.path, response.headers.get("Location") or "")
    except ValueError:  # what cannot even be split
        location = ""
    return parse_target(location)


def _require_content(response: http.client.HTTPResponse, key: str) -> None:
    status = response.status
    if status in _GONE:
        raise NotFound(f"the server has no {key}")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _BUSY:
        raise StoreUnavailable(f"the server answers {status} for {key}", hint=_AGAIN)
    if status != HTTPStatus.OK:
        raise ArtifactRefused(f"the server answers {status} for {key}", hint="is the address still right?")


def _pieces(response: http.client.HTTPResponse, ends_at_seconds: float) -> Iterator[bytes]:
    """Return the content, exactly as much as was announced; more is not asked for."""
    announced, read = response.length, 0
    while announced is None or read < announced:
        piece = response.read1(_PIECE_BYTES if announced is None else min(_PIECE_BYTES, announced - read))
        if time.monotonic() >= ends_at_seconds:
            raise TimeoutError
        if not piece:
            break
        read += len(piece)
        yield piece
    if announced is not None and read < announced:
        raise http.client.IncompleteRead(b"")


@contextmanager
def _translated(key: str, within: timedelta, ends_at_seconds: float) -> Iterator[None]:
    try:
        yield
    except (StoreUnavailable, ArtifactRefused, NotFound):
        raise
    except ssl.SSLCertVerificationError as error:
        raise ArtifactRefused(
            f"the server's certificate for {key} is not sound: {error.verify_message}",
            hint="SSL_CERT_FILE names further authorities that this node trusts",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= ends_at_seconds:
            raise ArtifactRefused(
                f"{key} did not arrive within {format_duration(within)}", hint="upload it, which is faster to read"
            ) from None
        fault = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        raise StoreUnavailable(f"the server failed for {key}: {fault}", hint=_AGAIN) from None
