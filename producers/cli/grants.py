"""`jobqueue grants`: serve nodes that have no credentials of the store."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import click

from producers.cli.arguments import read_settings
from producers.cli.group import Group


@click.group(cls=Group)
def grants() -> None:
    """Grants: what nodes without credentials of the store may read and write there."""


@grants.command()
def serve() -> None:
    """Answer nodes whose JOBQUEUE_STORAGE_URL is `granted:`, until Ctrl-C.

    Runs where the operator trusts the machine, with the credentials of the store; any number may run at once. No port
    is opened. The nodes' lines and the senders' lines have to be trusted here, this machine's clerk line by the nodes.
    """
    from jobqueue.keys import KeyRing
    from jobqueue.registry import open_registry
    from producers.granting import open_clerk
    from producers.granting import serve as answer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(levelname)s] %(message)s")
    settings = read_settings()
    name = f"{socket.gethostname()}:{os.getpid()}"
    keys = KeyRing.of(settings)
    with closing(open_registry(settings.registry)) as registry, _stopping() as stop:
        clerk = open_clerk(settings, registry, keys=keys, name=name)
        registry.ping()
        click.echo(f"grants.ready {name}: the clerk of {settings.storage}", err=True)
        click.echo(f"nodes have to trust it: jobqueue keys trust '{keys.clerk().public.line}'", err=True)
        answer(clerk, registry.calls, stop=stop)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Give what SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
