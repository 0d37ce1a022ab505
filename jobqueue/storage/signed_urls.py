"""Objects behind URLs that carry their own right: read and written without credentials.

A URL is never logged, nor part of an error: whoever has it has the right that it gives. The library's own messages
quote it, so none of them is handed on.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from typing import BinaryIO, Final

import urllib3

from jobqueue.errors import NotFound, StoreUnavailable
from jobqueue.tls import hint_of

_PIECE_BYTES: Final = 1 << 20
_READING: Final = urllib3.Timeout(connect=3, read=8)
# The first one counts for each part that is sent, the second for the answer to all of it.
_WRITING: Final = urllib3.Timeout(connect=15, read=120)
# What has expired, or was altered, is no sound request to some stores.
_REFUSALS: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_RETRIES: Final = urllib3.Retry(
    total=3,
    redirect=0,
    backoff_factor=0.1,
    backoff_max=1,
    allowed_methods=("GET", "PUT"),
    status_forcelist=(500, 502, 503, 504),
    raise_on_redirect=False,
    raise_on_status=False,
)


def read(url: str, *, key: str, ca: str = "") -> Iterator[bytes]:
    """Return the content of the object that `url` is for, in pieces of bounded size.

    Args:
        url: as a store has signed it.
        key: what messages call it.
        ca: file of the authorities that certificates are checked with; empty: those of the system.

    Raises:
        NotFound: there is none.
        StoreUnavailable: the store does not answer, or refuses the URL.
    """
    with _translated(key):
        answer = _pool(ca).request(
            "GET", url, preload_content=False, timeout=_READING, retries=_RETRIES, redirect=False
        )
    if answer.status != HTTPStatus.OK:
        answer.close()
    if answer.status == HTTPStatus.NOT_FOUND:
        raise NotFound(f"the store has no {key}")
    _check(answer.status, key)
    return _pieces(answer, key)


def write(url: str, source: bytes | BinaryIO, size_bytes: int, *, key: str, ca: str = "") -> None:
    """Write the object that `url` is for, with bounded memory; `size_bytes` of them are sent.

    Raises:
        StoreUnavailable: the store does not answer, or refuses the URL.
    """
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
    with _translated(key):
        answer = _pool(ca).request(
            "PUT", url, body=source, headers=headers, timeout=_WRITING, retries=_RETRIES, redirect=False
        )
    _check(answer.status, key)


def _check(status: int, key: str) -> None:
    if status in _REFUSALS:
        hint = "it may have expired on the way; are the clocks of the clerk and of the store right?"
        raise StoreUnavailable(f"the store refuses what a clerk has granted for {key}", hint=hint)
    if status not in (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT):
        raise StoreUnavailable(f"the store answers {status} for {key}")


def _pieces(answer: urllib3.BaseHTTPResponse, key: str) -> Iterator[bytes]:
    try:
        with _translated(key):
            yield from answer.stream(_PIECE_BYTES, decode_content=False)
    finally:
        answer.close()


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
        raise StoreUnavailable(f"the store failed for {key}: {type(cause).__name__}", hint=hint_of(error)) from None


@cache
def _pool(ca: str) -> urllib3.PoolManager:
    for logger in ("urllib3.connectionpool", "urllib3.util.retry"):  # they log URLs, at WARNING when they try again
        logging.getLogger(logger).setLevel(logging.ERROR)
    return urllib3.PoolManager(maxsize=8, ca_certs=ca or None)
