"""Flower starts only so that nobody who was not let in can look at workers, stop them, or cancel experiments.

`celery -A jobqueue flower` is Flower's own command, which listens everywhere and asks nobody anything unless it is told
to. It has Celery load this application's modules once its options are known: that is when they are looked at.
"""

import ipaddress
import os
from collections.abc import Mapping
from typing import Any, Final

from jobqueue.errors import InvalidSetting

_COMMAND: Final = "flower"
_OPEN_API: Final = "FLOWER_UNAUTHENTICATED_API"
_NO: Final = ("", "0", "f", "false", "n", "no", "off")


def guard_dashboard(**_: Any) -> None:
    """Refuse to start Flower where anybody could use it; in any other process nothing happens.

    Raises:
        SystemExit: it would be open; what to do has been said. Celery logs an `Exception` here with its traceback.
    """
    import click

    context = click.get_current_context(silent=True)
    if context is None or context.info_name != _COMMAND:
        return
    from tornado.options import options

    try:
        check_options(options, environment=os.environ)
    except InvalidSetting as error:
        refused = click.UsageError(str(error), ctx=context)
        refused.show()
        raise SystemExit(refused.exit_code) from None
    _ask_for_metrics_too()
    _only_listen()


def check_options(options: Any, *, environment: Mapping[str, str]) -> None:
    """Return when only this machine reaches Flower, or only who can name a password or an account.

    Args:
        options: Flower's, as it was started.
        environment: of its process.

    Raises:
        InvalidSetting: anybody could use it.
    """
    if environment.get(_OPEN_API, "").lower() not in _NO:
        told = f"{_OPEN_API} lets anybody stop workers and cancel experiments"
        raise InvalidSetting(told, hint="unset it; set FLOWER_BASIC_AUTH")
    passwords = [entry.partition(":")[2] for entry in options.basic_auth or ()]
    if not all(passwords):
        raise InvalidSetting("an account of Flower has no password", hint="write it as FLOWER_BASIC_AUTH=NAME:PASSWORD")
    if not (passwords or options.auth or options.unix_socket or _is_loopback(options.address)):
        where = options.address or "all addresses of this machine"
        told = f"Flower would serve everybody who reaches {where}, without a password"
        raise InvalidSetting(
            told, hint="add --address=127.0.0.1, or set FLOWER_BASIC_AUTH=NAME:PASSWORD (an option shows in `ps`)"
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _ask_for_metrics_too() -> None:
    """Let Flower's numbers be read by those alone who may read its pages: it serves them to everybody."""
    from flower.views.monitor import Metrics
    from tornado.web import authenticated

    Metrics.get = authenticated(Metrics.get)


def _only_listen() -> None:
    """Let Flower hear events without telling workers to speak: they do, and a dashboard's user may tell nothing."""
    from celery.events import EventReceiver

    setattr(EventReceiver, "wakeup_workers", lambda *_, **__: None)  # noqa: B010 - a method, to the type checker
