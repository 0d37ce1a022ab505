"""`jobqueue dev`: the embedded broker and registry, one node and Flower in one terminal, ended together."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobqueue.errors import InvalidSetting, RegistryUnavailable
from jobqueue.routing import request_queues
from producers.cli.arguments import read_settings
from producers.cli.children import end_with_terminal, start_child, stop_child
from producers.cli.embedded import EmbeddedServer, embedded_server
from producers.cli.group import EXIT_ERROR

if TYPE_CHECKING:
    from jobqueue.config import Settings

_FLOWER_PORT = 5555
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_FLOWER_GRACE = timedelta(seconds=5)
_DRAIN_MARGIN = timedelta(seconds=10)
_LOOK_SECONDS = 0.1


@click.command()
@click.option(
    "--flower/--no-flower",
    default=True,
    help="Serve Flower, Celery's web view, on this machine only, behind a password.",
)
@click.option(
    "--flower-port",
    type=click.IntRange(1, 65535),
    default=_FLOWER_PORT,
    show_default=True,
    help="Its port; a free one when it is taken.",
)
@click.option("-q", "--quiet", is_flag=True, help="Write the node's log to a file instead of this terminal.")
@click.pass_context
def dev(ctx: click.Context, /, *, flower: bool, flower_port: int, quiet: bool) -> None:
    """Run everything on this machine in one terminal: broker, registry, one node and Flower.

    Nothing is opened to the network but Flower, on 127.0.0.1. Ctrl-C stops it all; experiments that are waiting
    are kept, and go on with the next `jobqueue dev`.
    """
    settings = read_settings()
    _check(settings)
    code = EXIT_ERROR
    with _interruptible(), ExitStack() as running:
        server = running.enter_context(embedded_server(settings))
        prepare(settings)
        log = server.folder / "node.log" if quiet else None
        parts = {server.pid: "the broker"}
        node = running.enter_context(node_process(settings, log=log))
        parts[node.pid] = "the node"
        web = _start_flower(running, settings, server, port=flower_port) if flower else "off"
        _announce(settings, server, node=node, web=web, log=log)
        try:
            if wait_until_served(settings, is_over=_has_any_ended):
                _invite()
            ended = parts.get(_wait_for_any_end(), "Flower")
            click.echo(f"{ended} ended by itself; the logs are in {server.folder}", err=True)
        except KeyboardInterrupt:
            click.echo("\nstopping: what runs may finish for a moment; Ctrl-C once more to stop at once", err=True)
            code = 0
    click.echo("stopped", err=True)
    ctx.exit(code)


def prepare(settings: "Settings") -> None:
    """Make the keys and the project's request queues, if they are not there."""
    from jobqueue.brokers import open_broker
    from jobqueue.keys import ensure_laptop_keys

    ensure_laptop_keys(settings.keys_dir, passphrase=settings.keys_passphrase)
    broker = open_broker(settings.broker, lease=settings.lease)
    try:
        for queue in request_queues(settings.project):
            broker.queues.create(queue)
    finally:
        broker.close()


@contextmanager
def node_process(settings: "Settings", *, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run one node on the embedded broker, and drain it at the end.

    Args:
        settings: of this terminal; the node gets the same environment.
        log: where its log goes; None: to stderr.
    """
    child = start_child(_celery("worker", "--loglevel=INFO"), log=log, env=_environment(settings))
    try:
        yield child
    finally:
        stop_child(child, grace=settings.grace + _DRAIN_MARGIN)


def wait_until_served(settings: "Settings", *, is_over: Callable[[], bool]) -> bool:
    """Wait until a worker is there; return False when there is none once `is_over` says that none will come.

    A registry that does not answer for a moment, or has ended, knows of none: `is_over` says what that means.
    """
    from jobqueue.registry import open_registry

    with closing(open_registry(settings.registry)) as registry:
        while True:
            with suppress(RegistryUnavailable):
                if registry.workers.present():
                    return True
            if is_over():
                return False
            time.sleep(_LOOK_SECONDS)


def _start_flower(running: ExitStack, settings: "Settings", server: EmbeddedServer, *, port: int) -> str:
    """Start Flower; return its address, or why it does not run."""
    if find_spec("flower") is None:
        return "not installed (pip install 'jobqueue[flower]')"
    port = _free_port(port)
    words, environment, login = _celery("flower", "--address=127.0.0.1", f"--port={port}"), _environment(settings), ""
    if not environment.keys() & {"FLOWER_BASIC_AUTH", "FLOWER_AUTH"}:
        # Every user of this machine reaches 127.0.0.1, and so does every page that a browser here shows.
        environment["FLOWER_BASIC_AUTH"] = password = f"jobqueue:{secrets.token_urlsafe(12)}"
        login = f"{password}@"
    child = start_child(words, log=server.folder / "flower.log", env=environment)
    running.callback(stop_child, child, grace=_FLOWER_GRACE)
    return f"http://{login}127.0.0.1:{port}"


def _free_port(wanted: int) -> int:
    """Return `wanted`, or a free one when it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise InvalidSetting("no port is free on 127.0.0.1 for Flower", hint="add --no-flower")


def _celery(*words: str) -> list[str]:
    return [sys.executable, "-m", "celery", "--quiet", "-A", "jobqueue", *words]


def _environment(settings: "Settings") -> dict[str, str]:
    """Return the children's environment: this one, pinned to the same state, Flower's API closed."""
    kept = {name: value for name, value in os.environ.items() if name != "FLOWER_UNAUTHENTICATED_API"}
    # One's own code on one's own machine: without an engine and bubblewrap it runs all the same, and so it does on an
    # engine that keeps less, as those of desktops and those without root may.
    accepted = ",".join(sorted({*settings.accepted_gaps, "no-limits", "no-seccomp", "open-socket", "unconfined"}))
    pinned = {"JOBQUEUE_STATE_DIR": str(settings.state_dir), "JOBQUEUE_PROJECT": settings.project}
    return kept | pinned | {"JOBQUEUE_ACCEPTED_GAPS": accepted}


def _check(settings: "Settings") -> None:
    own = f"redis+socket://{settings.embedded_socket}"
    for name, url in (("BROKER_URL", settings.broker_url), ("REGISTRY_URL", settings.registry_url)):
        if url not in ("", own):
            raise InvalidSetting(
                f"JOBQUEUE_{name} names a server, and `jobqueue dev` brings its own",
                hint=f"unset JOBQUEUE_{name}, or start a node for that server with `celery -A jobqueue worker`",
            )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal as Ctrl-C."""
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    end_with_terminal()
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_any_end() -> int:
    """Wait until one of this process's children has ended, and return its process id without reaping it."""
    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    return found.si_pid if found else 0


def _has_any_ended() -> bool:
    return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _announce(
    settings: "Settings", server: EmbeddedServer, *, node: subprocess.Popen[bytes], web: str, log: Path | None
) -> None:
    lines = {
        "broker": f"{settings.broker}  (registry too; pid {server.pid})",
        "node": f"celery -A jobqueue worker  (pid {node.pid}; log {log or 'below'})",
        "queues": ", ".join(request_queues(settings.project)),
        "flower": web,
        "store": settings.storage,
        "keys": str(settings.keys_dir),
    }
    for name, text in lines.items():
        click.echo(f"{click.style(f'{name:8}', bold=True)}{text}")
    sys.stdout.flush()


def _invite() -> None:
    click.echo("try it, in another terminal:  jobqueue run --image python:3.12-slim -- python -c 'print(42)'")
    click.echo("Ctrl-C stops everything")
    sys.stdout.flush()
