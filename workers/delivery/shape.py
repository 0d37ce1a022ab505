"""The shape of what a producer of this project sends, checked before anything in a message is believed."""

from typing import Any, Final

from jobqueue.application import CONTENT_TYPE, TASK
from jobqueue.envelope import Verified
from jobqueue.errors import BadEnvelope

_NOT_FOR_EXPERIMENTS: Final = ("eta", "expires", "group", "chord", "chain", "callbacks", "errbacks")
# Celery writes about twenty, and a broker adds some each time.
_MOST_HEADERS: Final = 100
_NO_LIMITS: Final = (None, [None, None], (None, None))


def check_shape(message: Any) -> None:
    """Raise when a message is not what a producer of this project sends.

    Raises:
        BadEnvelope: the headers or the content type are not ours.
    """
    headers = message.headers
    if getattr(message, "errors", None):
        raise BadEnvelope("it cannot be decoded")
    if not isinstance(message.body, bytes | memoryview):
        raise BadEnvelope("the body is no bytes")
    if message.content_type != CONTENT_TYPE:
        raise BadEnvelope("the content type is not an envelope's")
    if not isinstance(headers, dict) or headers.get("task") != TASK or not isinstance(headers.get("id"), str):
        raise BadEnvelope("the headers name no experiment")
    if any(headers.get(name) for name in _NOT_FOR_EXPERIMENTS) or headers.get("timelimit") not in _NO_LIMITS:
        raise BadEnvelope("the headers ask for what experiments do not have")
    if headers.get("retries") not in (None, 0) or len(headers) > _MOST_HEADERS:
        raise BadEnvelope("the headers ask for what experiments do not have")


def check_id(message: Any, verified: Verified) -> None:
    """Raise `BadEnvelope` when a message is not that of the experiment in its envelope."""
    if verified.header.experiment_id != message.headers["id"]:
        raise BadEnvelope("the message's id is not the envelope's")
