"""What many queues cost a node while it is idle, how soon a new one is served, and what SQS is asked for meanwhile."""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
from amqp import Connection
from services.moto import open_moto
from services.process import Process
from services.site import Site, open_site
from services.sqs_proxy import open_sqs_proxy

from bench.results import Result, absolute
from bench.servers import Servers
from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.routing import COMPANIONS, DEAD, parse_selection

MANY = 1000
FULL = 20
_SQS_SIZES = (1, 20, 1000)
_WINDOW_SECONDS = 30.0
# Until first questions have been asked, and one queue alone is polled for long.
_SETTLE_SECONDS = 20.0


def measure_many_queues(servers: Servers) -> list[Result]:
    """Measure 1,000 queues, 20 of them with work, on RabbitMQ and on Redis."""
    return [result for broker in ("redis", "rabbitmq") for result in _measure(servers, broker)]


def measure_sqs_requests(servers: Servers) -> list[Result]:
    """Count what an idle node asks SQS for with 1, 20 and 1,000 queues, with one slot and with three."""
    results = []
    with (
        open_moto(servers.folder / "moto") as moto,
        open_sqs_proxy(moto.port) as proxy,
        closing(moto.client("sqs")) as sqs,
    ):
        for size in _SQS_SIZES:
            for number in range(size):
                for ending in ("", DEAD):
                    sqs.create_queue(QueueName=f"n{size}-lab_{number:04d}{ending}")
            url = f"sqs://testing:testing@127.0.0.1:{proxy.port}?region=us-east-1&tls=false&prefix=n{size}-"
            for slots in (1, 3):
                with _site(servers, url) as site, _workers(site, slots):
                    time.sleep(_SETTLE_SECONDS)
                    asked = proxy.asked.copy()
                    time.sleep(_WINDOW_SECONDS)
                    found = proxy.asked - asked
                per_hour = {name: round(count * 3600 / _WINDOW_SECONDS) for name, count in sorted(found.items())}
                note = ", ".join(f"{name} {count}" for name, count in per_hour.items())
                name = f"sqs_requests_{size}_queues_{slots}_slots"
                results.append(absolute(name, [sum(per_hour.values())], unit="1/h", note=note))
                print(f"{name}: {note}", file=sys.stderr, flush=True)
    return results


def _measure(servers: Servers, name: str) -> Iterator[Result]:
    management = {"management_url": servers.rabbitmq.management_url} if name == "rabbitmq" else {}
    with _site(servers, servers.broker_url(name), **management) as site, closing(_open(site)) as broker:
        project = site.settings.project
        _make_queues(site, broker, [f"{project}_{number:04d}" for number in range(MANY)])
        looks = []
        for _ in range(servers.rounds(10)):
            with closing(_open(site)) as fresh:
                began = time.perf_counter()
                assert len(fresh.survey.look(parse_selection([f"{project}_*"])).waiting) == MANY
                looks.append(1000 * (time.perf_counter() - began))
        yield absolute(f"discovery_{name}", looks, unit="ms", note=f"{MANY} queues, a new connection")
        with _workers(site, 1) as (worker,):
            yield absolute(f"idle_cpu_{name}", [_cpu_percent(worker)], unit="%", note=f"of a core, {MANY} empty queues")
            yield absolute(f"new_queue_{name}", _serve_new(site, broker, servers.rounds(5)), unit="s", note=_NEW)
            for number in range(FULL):
                site.client.submit(
                    image="any:1", command=["sleep", "600"], disk="1MiB", queue=f"{project}_{number * 50:04d}"
                )
            time.sleep(5)
            yield absolute(f"busy_cpu_{name}", [_cpu_percent(worker)], unit="%", note=f"the same, {FULL} with work")


_NEW = "from the creation of a queue to the end of its first experiment"


def _serve_new(site: Site, broker: Broker, rounds: int) -> list[float]:
    taken = []
    for number in range(rounds):
        queue = f"{site.settings.project}_new{number}"
        broker.queues.create(queue)
        began = time.monotonic()
        site.client.submit(image="any:1", command=["true"], disk="1MiB", queue=queue).result(timeout=60)
        taken.append(time.monotonic() - began)
    return taken


def _make_queues(site: Site, broker: Broker, names: list[str]) -> None:
    """Make queues with their companions; classic ones at RabbitMQ, which are made in a thousandth of the time."""
    if not site.settings.broker.startswith("amqp"):
        for name in names:
            broker.queues.create(name)
        return
    with Connection(site.settings.broker.split("@")[1].rstrip("/")) as connection:
        channel = connection.channel()
        for name in names:
            for each in (name, *(name + ending for ending in COMPANIONS)):
                channel.queue_declare(each, durable=True, auto_delete=False, nowait=True)
        channel.queue_declare(names[0], passive=True)


def _cpu_percent(worker: Process) -> float:
    """Return how much of a core a worker and its guard use."""
    processes = [psutil.Process(pid) for pid in worker.pids]
    before = sum(sum(process.cpu_times()[:2]) for process in processes)
    time.sleep(_WINDOW_SECONDS)
    return 100 * (sum(sum(process.cpu_times()[:2]) for process in processes) - before) / _WINDOW_SECONDS


@contextmanager
def _workers(site: Site, slots: int) -> Iterator[list[Process]]:
    pattern = f"{site.settings.project}_*" if not site.settings.broker.startswith("sqs") else "lab_*"
    workers = [site.make_worker(f"slot{number}", environment={"JOBQUEUE_QUEUES": pattern}) for number in range(slots)]
    try:
        for worker in workers:
            worker.start()
        yield workers
    finally:
        for worker in workers:
            worker.stop()


@contextmanager
def _site(servers: Servers, url: str, **settings: str) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="queues-", dir=servers.folder))
    with open_site(
        folder, broker=url, registry=servers.redis.url, lease="60s", grace="0s", runtime="process", **settings
    ) as site:
        yield site


def _open(site: Site) -> Broker:
    settings = site.settings
    return open_broker(settings.broker, lease=settings.lease, management_url=settings.management_url)
