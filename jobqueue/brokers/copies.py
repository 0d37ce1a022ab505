"""What a copy of a delivery carries, and how kombu lays a message into Redis and memory.

Headers that a broker or an earlier copy has left are never carried over: RabbitMQ drops a message whose `x-death` shows
a cycle, and `CC` would let a sender address our copy to further queues. Nor is what no broker takes again: that which
is no JSON, or too much.
"""

import base64
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from jobqueue.brokers.base import Mail

REASON_HEADER: Final = "jobqueue-reason"
DETAIL_HEADER: Final = "jobqueue-detail"
TIME_HEADER: Final = "jobqueue-dead-at"
# The content type of what is no message, but the body of one that says so.
UNREADABLE: Final = "application/octet-stream"
_BOUNDED: Final = (REASON_HEADER, DETAIL_HEADER, TIME_HEADER)
_ENCODINGS: Final = (None, "", "base64", "utf-8")
_OURS: Final = "jobqueue-"
_STALE_PREFIXES: Final = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-", "x-acquired-")
_STALE: Final = ("CC", "BCC")
_DETAIL_LIMIT: Final = 1000
_REASON_LIMIT: Final = 100
# An envelope in base64 beside its headers has room in the first; of what is longer, so much is kept.
LARGEST_BYTES: Final = 2**20
KEPT_BYTES: Final = 64 * 1024
# How long a message was of which the beginning was kept.
SIZE_HEADER: Final = "original-bytes"
# At RabbitMQ all headers have to fit into one frame of 128 KiB.
_HEADERS_LIMIT: Final = 64 * 1024


def fresh_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers as their sender wrote them, as far as they can be sent again."""
    kept: dict[str, Any] = {}
    room: float = _HEADERS_LIMIT
    for key, value in headers.items():
        size = 0 if key in _BOUNDED else _size(key, value)
        if size <= room and key not in _STALE and not key.startswith(_STALE_PREFIXES):
            kept[key], room = value, room - size
    return kept


def dead_headers(headers: Mapping[str, Any], *, reason: str, detail: str, at: str | None = None) -> dict[str, Any]:
    """Return the headers of a dead letter: the sender's, and why it lies there, bounded, and since when.

    Args:
        headers: of the message.
        reason: the name of a `Reason`.
        detail: a sentence.
        at: when it was set aside, as written then, or empty; None: now.
    """
    kept = {key: value for key, value in fresh_headers(headers).items() if not key.startswith(_OURS)}
    return {
        **kept,
        REASON_HEADER: _bounded(reason, _REASON_LIMIT),
        DETAIL_HEADER: _bounded(detail, _DETAIL_LIMIT),
        TIME_HEADER: datetime.now(UTC).isoformat(timespec="milliseconds") if at is None else at,
    }


def text_headers(headers: Mapping[str, Any]) -> dict[str, str]:
    """Return headers as text; what is not text becomes JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in headers.items()
        if value is not None
    }


def pack(queue: str, body: bytes, *, content_type: str, headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as kombu's transports without a server of their own (Redis, memory) keep it."""
    return {
        "body": base64.b64encode(body).decode("ascii"),
        "content-encoding": "binary",
        "content-type": content_type,
        "headers": dict(headers),
        "properties": {
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_mode": 2,
            "delivery_tag": str(uuid4()),
            "priority": 0,
        },
    }


def repack(payload: Mapping[str, Any], queue: str, *, headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of theirs for another queue and with other headers; its body stays as it is."""
    properties = {
        **payload["properties"],
        "delivery_info": {"exchange": "", "routing_key": queue},
        "delivery_tag": str(uuid4()),
        "priority": 0,
    }
    return {**payload, "headers": dict(headers), "properties": properties}


def unpack(payload: Mapping[str, Any], *, handle: object) -> Mail:
    """Return the mail in a message of theirs.

    Raises:
        ValueError: it is none.
    """
    try:
        encoded = payload["properties"].get("body_encoding") == "base64"
        body = base64.b64decode(payload["body"], validate=True) if encoded else payload["body"].encode()
        headers = text_headers(payload.get("headers") or {})
        return Mail(body=body, content_type=str(payload["content-type"]), headers=headers, handle=handle)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a message of kombu") from error


def unpack_json(raw: bytes, *, handle: object) -> Mail:
    """Return the mail in a message of theirs as JSON; bytes that are none become the body, for the reader to refuse."""
    try:
        return unpack(json.loads(raw), handle=handle)
    except (ValueError, RecursionError):
        return Mail(body=raw, content_type=UNREADABLE, handle=handle)


def as_message(raw: bytes, *, queue: str, tag: str) -> dict[str, Any]:
    """Return what lay in a queue as a message of kombu's: itself, or one with it as its body."""
    try:
        payload = json.loads(raw)
        _check(payload)
    except (ValueError, RecursionError):
        payload = pack(queue, raw, content_type=UNREADABLE, headers={})
    properties = payload["properties"]
    given = properties.get("delivery_info")
    properties["delivery_info"] = {**(given if isinstance(given, dict) else {}), "exchange": "", "routing_key": queue}
    properties["delivery_tag"] = tag
    message: dict[str, Any] = payload
    return message


def _check(payload: Any) -> None:
    """Raise ValueError when kombu could not make a message of it."""
    parts = payload if isinstance(payload, dict) else {}
    match parts:
        case {"properties": dict(properties)} if isinstance(parts.get("headers"), dict | None):
            encoding, body = properties.get("body_encoding"), parts.get("body") or ""
        case _:
            raise ValueError("its parts are not those of a message")
    if encoding not in _ENCODINGS or not isinstance(body, str):
        raise ValueError("its body is encoded in an unknown way")
    if encoding == "base64":
        base64.b64decode(body)
    body.encode()


def unreadable(size: int = 0) -> dict[str, Any]:
    """Return the properties of what cannot be read, or of the beginning of what is `size` bytes long."""
    return {"content_type": UNREADABLE, "application_headers": {SIZE_HEADER: size} if size else {}}


def _size(key: object, value: object) -> float:
    """Return about how many bytes a header takes; infinity for one that cannot be sent again."""
    try:
        return math.inf if not isinstance(key, str) else len(json.dumps([key, value], allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return math.inf


def _bounded(text: str, limit: int) -> str:
    # A lone surrogate, as a sender may smuggle in, could not be encoded.
    return text.encode("utf-8", "replace").decode("utf-8")[:limit]
