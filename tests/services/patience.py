"""How long a test waits for the answer of a broker that is there: longer than a user does, on a busy machine.

A user is told within two seconds that a broker is away. Of thousands of calls while all tests run at once, some take
longer for no fault of anybody's, and each would be a test that fails sometimes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Final

import pytest

_PATIENT_SECONDS: Final = 15.0
_LIMITS: Final = (
    ("jobqueue.brokers.links", "_CONNECT_SECONDS"),
    ("jobqueue.brokers.links", "_REPLY_SECONDS"),
    ("jobqueue.brokers.rabbitmq", "_CONFIRM"),
    ("jobqueue.brokers.redis", "CONNECT_SECONDS"),
    ("jobqueue.brokers.redis", "REPLY_SECONDS"),
    ("jobqueue.brokers.redis_server", "CONNECT_SECONDS"),
    ("jobqueue.brokers.redis_server", "REPLY_SECONDS"),
    ("jobqueue.brokers.sqs_client", "_CONNECT_SECONDS"),
    ("jobqueue.brokers.sqs_client", "_REPLY_SECONDS"),
)
# As they are for a user.
_TOLD: Final = {(module, name): getattr(import_module(module), name) for module, name in _LIMITS}


@contextmanager
def wait_patiently() -> Iterator[None]:
    """Give the brokers that this process asks more time for an answer."""
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), told in _TOLD.items():
            is_span = isinstance(told, timedelta)
            patch.setattr(
                import_module(module), name, timedelta(seconds=_PATIENT_SECONDS) if is_span else _PATIENT_SECONDS
            )
        yield


@contextmanager
def wait_as_users_do() -> Iterator[None]:
    """Give them the product's own time meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), told in _TOLD.items():
            patch.setattr(import_module(module), name, told)
        yield
