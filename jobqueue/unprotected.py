"""Which protections are switched off, so that the fault suite can prove that it would miss each of them.

`JOBQUEUE_UNSAFE_FOR_TESTS` names them, separated by commas. It is refused unless every server that the environment
names is on this machine, and it has to name them all: a site that runs real experiments cannot end up like this.
"""

import logging
import os
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Final
from urllib.parse import urlsplit

from jobqueue.errors import InvalidSetting

log = logging.getLogger(__name__)

VARIABLE: Final = "JOBQUEUE_UNSAFE_FOR_TESTS"
_SERVERS: Final = ("JOBQUEUE_BROKER_URL", "JOBQUEUE_REGISTRY_URL", "JOBQUEUE_STORAGE_URL")
_STORE: Final = "JOBQUEUE_STORAGE_ENDPOINT"
_HERE: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_WITHOUT_HOST: Final = frozenset({"memory", "file", "redis+socket"})


class Protection(StrEnum):
    """What can be switched off.

    Attributes:
        QUARANTINE: a registry that has lost what it knew grants nothing for one lease.
        CLOCK: a step of the registry's clock ends no lease.
        TOKEN: only the holder of the newest token may write.
        GUARD: containers whose lease file is overdue are frozen, also without their worker.
        DEFER: a delivery that may not run comes back later.
        CONSUMER: messages are checked before Celery sees them.
        SWEEP: experiments that no queue holds are published again.
        MARKER: the first result marker wins.
        TRUE_TIME: nobody can turn the registry's clock; without it the key `jobqueue:skew_ms` does.
    """

    QUARANTINE = "quarantine"
    CLOCK = "clock"
    TOKEN = "token"  # noqa: S105 a fencing token, no password
    GUARD = "guard"
    DEFER = "defer"
    CONSUMER = "consumer"
    SWEEP = "sweep"
    MARKER = "marker"
    TRUE_TIME = "skew"


def is_off(protection: Protection) -> bool:
    """Tell whether a protection is switched off in this process.

    Raises:
        InvalidSetting: the variable is set where it must not be, or names what is none.
    """
    words = os.environ.get(VARIABLE, "")
    return bool(words) and protection in _parse(words, tuple(os.environ.get(name, "") for name in (*_SERVERS, _STORE)))


@cache
def _parse(words: str, addresses: tuple[str, ...]) -> frozenset[Protection]:
    """Return what is switched off; said loudly, once for each wording."""
    _require_this_machine(dict(zip((*_SERVERS, _STORE), addresses, strict=True)))
    try:
        off = frozenset(Protection(word.strip()) for word in words.split(",") if word.strip())
    except ValueError as error:
        raise InvalidSetting(f"{VARIABLE}: {error}", hint=f"use some of {', '.join(Protection)}") from None
    for protection in sorted(off):
        log.critical("protection.off", extra={"protection": protection})
    return off


def _require_this_machine(addresses: Mapping[str, str]) -> None:
    for name in _SERVERS:
        address = addresses[_STORE] if addresses[name].startswith("s3:") else addresses[name]
        if not _is_here(address):
            raise InvalidSetting(
                f"{VARIABLE} is only for servers on this machine, and {name} names none",
                hint=f"unset it; or set {', '.join(_SERVERS)} to this machine's",
            )


def _is_here(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in _WITHOUT_HOST or parts.hostname in _HERE
