"""`jobqueue doctor`: what a submitter and a node depend on, one line each, with the way to mend it."""

import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import click

from jobqueue.errors import JobqueueError, NotFound
from jobqueue.printable import plain
from producers.cli.group import EXIT_UNAVAILABLE, find_hint
from producers.cli.output import Format, colour, format_option, write_json
from producers.cli.published import read_documents

if TYPE_CHECKING:
    from jobqueue.config import Settings
    from jobqueue.registry.presence import WorkerRecord

_PROBE: Final = "doctor/probe"
_LEAST_DISK_BYTES: Final = 2 * 10**9
_FIT: Final = ("OK", "DRAINING")


class Verdict(StrEnum):
    """How a check went; only FAIL keeps experiments from running."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found, and what to do about it."""

    name: str
    verdict: Verdict
    text: str
    fix: str = ""


@click.command()
@format_option
@click.option("--probe", is_flag=True, help="Start a container here that tries what no experiment may reach.")
@click.pass_context
def doctor(ctx: click.Context, /, *, form: str, probe: bool) -> None:
    """Check the settings, the servers, the keys and the container engine; say how to mend what is wrong.

    Exits with 69 when something keeps experiments from running.
    """
    findings = []
    for finding in _probe() if probe else examine():
        findings.append(finding)
        if form != Format.JSON:
            _write(finding, form)
    if form == Format.JSON:
        write_json([asdict(finding) for finding in findings])
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        ctx.exit(EXIT_UNAVAILABLE)


def examine() -> Iterator[Finding]:
    """Yield what each check finds, in the order of what depends on what."""
    try:
        from jobqueue.config import Settings, misspelt_variables

        settings = Settings()
    except JobqueueError as error:
        yield _failed("settings", error)
        return
    yield Finding(
        name="settings", verdict=Verdict.OK, text=f"project {settings.project}, state in {settings.state_dir}"
    )
    for name, close in misspelt_variables().items():
        fix = f"did you mean {close}?" if close else f"unset {name}"
        yield Finding(name="settings", verdict=Verdict.WARN, text=f"{name} is no setting and changes nothing", fix=fix)
    for name, check in _CHECKS.items():
        try:
            yield from check(settings)
        except JobqueueError as error:
            yield _failed(name, error)
        except Exception as error:  # noqa: BLE001 - the outer edge: one check that breaks must not hide the others
            yield Finding(name=name, verdict=Verdict.FAIL, text=f"{type(error).__name__}: {error}")


def _check_broker(settings: "Settings") -> Iterator[Finding]:
    from jobqueue.brokers import open_broker
    from jobqueue.routing import request_queues
    from producers.connections import without_password

    with closing(open_broker(settings.broker, lease=settings.lease)) as broker:
        began = time.monotonic()
        there = {queue: broker.queues.exists(queue) for queue in request_queues(settings.project)}
        took = (time.monotonic() - began) * 1000 / len(there)
        yield Finding(
            name="broker", verdict=Verdict.OK, text=f"{without_password(settings.broker)} answers in {took:.0f} ms"
        )
        missing = [queue for queue, exists in there.items() if not exists]
        if missing:
            fix = f"jobqueue queues create {' '.join(missing)}"
            yield Finding(name="queues", verdict=Verdict.WARN, text=f"not there: {', '.join(missing)}", fix=fix)
        else:
            yield Finding(name="queues", verdict=Verdict.OK, text=", ".join(there))


def _check_registry(settings: "Settings") -> Iterator[Finding]:
    from jobqueue.registry import open_registry
    from producers.connections import without_password

    with closing(open_registry(settings.registry)) as registry:
        ahead = datetime.now(UTC) - registry.ping()
        yield Finding(name="registry", verdict=Verdict.OK, text=f"{without_password(settings.registry)} answers")
        yield _judge_clock(ahead)
        workers = registry.workers.present()
    yield _judge_workers(workers)


def _judge_workers(workers: "Sequence[WorkerRecord]") -> Finding:
    if not workers:
        fix = "start one with `celery -A jobqueue worker`, or `jobqueue dev`"
        return Finding(name="workers", verdict=Verdict.WARN, text="none is there; experiments wait", fix=fix)
    names = ", ".join(f"{worker.worker_id} ({worker.runtime}; {', '.join(worker.queues)})" for worker in workers)
    unfit = [f"{worker.worker_id}: {worker.state}" for worker in workers if worker.state not in _FIT]
    if unfit:
        fix = "look at the engine and the disk there; the worker's log says what is wrong"
        return Finding(
            name="workers", verdict=Verdict.WARN, text=f"{names}; taking nothing: {', '.join(unfit)}", fix=fix
        )
    return Finding(name="workers", verdict=Verdict.OK, text=names)


def _judge_clock(ahead: timedelta) -> Finding:
    """Judge how far this machine's clock is ahead of the registry's, which decides about leases."""
    from producers.causes import judge_clock

    text = f"{round(ahead.total_seconds(), 1) or 0:+.1f} s from the registry's"  # not -0.0
    if not judge_clock(ahead):
        return Finding(name="clock", verdict=Verdict.OK, text=text)
    fix = "synchronise the clocks of both machines, as with `timedatectl set-ntp true`"
    return Finding(name="clock", verdict=Verdict.WARN, text=text, fix=fix)


def _check_store(settings: "Settings") -> Iterator[Finding]:
    from jobqueue.storage import open_store
    from jobqueue.storage.base import GRANTED, check_store

    if settings.storage == GRANTED:
        yield _check_clerk(settings)
        return
    store = open_store(settings.storage, endpoint=settings.store_endpoint)
    written = f"{socket.gethostname()} {datetime.now(UTC).isoformat()}".encode()
    store.put(_PROBE, written)
    if b"".join(store.get(_PROBE)) != written:
        yield Finding(
            name="store", verdict=Verdict.FAIL, text=f"{settings.storage} does not give back what was written"
        )
        return
    check_store(store)
    yield Finding(name="store", verdict=Verdict.OK, text=f"{settings.storage} takes, gives back and keeps")


def _check_clerk(settings: "Settings") -> Finding:
    """See who grants this machine what it has no credentials for, as a worker of its first queue asks."""
    from jobqueue.keys import KeyRing
    from jobqueue.registry import open_registry
    from jobqueue.routing import request_queues
    from jobqueue.spec import is_name
    from jobqueue.storage.base import check_store
    from jobqueue.storage.granted import GrantedStore

    queue = next(iter([*filter(is_name, settings.queues), *request_queues(settings.project)]))
    with closing(open_registry(settings.registry)) as registry:
        keys = KeyRing.of(settings)
        keys.node_signer()
        store = GrantedStore(registry.calls.ask, keys, queue=queue)
        check_store(store)
        return Finding(name="store", verdict=Verdict.OK, text=f"granted by the clerk {store.clerk}, who writes once")


def _check_keys(settings: "Settings") -> Iterator[Finding]:
    from jobqueue.keys import KeyRing, list_keys
    from jobqueue.routing import request_queues

    folder = settings.keys_dir
    entries = list_keys(folder, passphrase=settings.keys_passphrase)  # refuses a private key that others can read
    ring = KeyRing.of(settings, shown=lambda: read_documents(settings))
    try:
        ring.sender()
        ring.recipient(request_queues(settings.project)[0])
    except NotFound as error:
        yield Finding(
            name="keys", verdict=Verdict.WARN, text=f"cannot submit from here: {error.message}", fix=error.hint
        )
        return
    text = f"{len(entries)} in {folder}, private ones for their owner only"
    yield Finding(name="keys", verdict=Verdict.OK, text=text)


def _check_engine(settings: "Settings") -> Iterator[Finding]:
    verdict = Verdict.FAIL if settings.runtime == "docker" else Verdict.WARN
    if settings.runtime == "process":
        yield Finding(name="engine", verdict=Verdict.OK, text="not asked for: JOBQUEUE_RUNTIME=process")
        return
    try:
        answer = find_engine()
    except ImportError:
        fix = "pip install 'jobqueue[worker]'"
        yield Finding(name="engine", verdict=verdict, text="the docker package is not installed", fix=fix)
        return
    if answer:
        from producers.cli.reach import describe_gaps

        yield Finding(name="engine", verdict=Verdict.OK, text=answer)
        if gap := describe_gaps():
            judged = verdict if gap.fix else Verdict.WARN
            yield Finding(
                name="engine", verdict=judged, text=gap.text, fix=gap.fix or "docs/nodes.md says which matter"
            )
    else:
        fix = "start Docker or Podman here if this machine is to be a node; DOCKER_HOST names another socket"
        text = "none answers here; a node would use the weaker `process` runtime"
        yield Finding(name="engine", verdict=verdict, text=text, fix=fix)


def find_engine() -> str:
    """Return the name and version of the container engine that answers on this machine; empty when none does.

    Raises:
        ImportError: the docker package is not there.
    """
    import docker
    from docker.errors import DockerException

    try:
        with closing(docker.from_env(timeout=5)) as client:
            version = client.version()
    except (DockerException, OSError):
        return ""
    name = (version.get("Platform") or {}).get("Name") or "engine"
    return f"{name} {version.get('Version', '')}".strip()


def _check_devices(settings: "Settings") -> Iterator[Finding]:
    from producers.cli.devices import describe_devices

    del settings
    for told in describe_devices():
        verdict = Verdict.WARN if told.fix else Verdict.OK
        yield Finding(name="devices", verdict=verdict, text=told.text, fix=told.fix)


def _probe() -> Iterator[Finding]:
    from producers.cli.reach import describe_reach

    for told in describe_reach():
        yield Finding(name="probe", verdict=Verdict.FAIL if told.fix else Verdict.OK, text=told.text, fix=told.fix)


def _check_disk(settings: "Settings") -> Iterator[Finding]:
    for name, folder in (("state", settings.state_dir), ("cache", settings.cache_dir)):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
        verdict = Verdict.OK if free >= _LEAST_DISK_BYTES else Verdict.WARN
        fix = "" if verdict is Verdict.OK else f"free some room, or set JOBQUEUE_{name.upper()}_DIR to another disk"
        yield Finding(name=f"{name} disk", verdict=verdict, text=f"{free / 1e9:.1f} GB free for {folder}", fix=fix)


_CHECKS: Final[dict[str, Callable[["Settings"], Iterator[Finding]]]] = {
    "broker": _check_broker,
    "registry": _check_registry,
    "store": _check_store,
    "keys": _check_keys,
    "engine": _check_engine,
    "devices": _check_devices,
    "disk": _check_disk,
}


def _failed(name: str, error: JobqueueError) -> Finding:
    fix = find_hint(error).partition(" `jobqueue doctor`")[0]  # who reads this is there already
    return Finding(name=name, verdict=Verdict.FAIL, text=error.message, fix=fix)


def _write(finding: Finding, form: str) -> None:
    if form == Format.NAME:
        click.echo(f"{finding.name} {finding.verdict}")
        return
    click.echo(f"{colour(finding.verdict.ljust(4))}  {finding.name:10}  {plain(finding.text)}")
    if finding.fix and finding.verdict is not Verdict.OK:
        click.echo(f"{'':16}  fix: {plain(finding.fix)}")
