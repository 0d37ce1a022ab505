"""How many messages a worker refuses in a second, and what an experiment that runs beside that feels of it."""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
from redis import Redis
from services.broker_client import patiently
from services.garbage import KINDS, Garbage, flood
from services.process import Process
from services.site import Site, open_site
from services.waiting import wait_until

from bench.results import Result, absolute
from bench.servers import Servers
from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.ids import ExperimentId
from jobqueue.registry import open_registry
from workers.attempt.lease import RENEWALS_PER_LEASE

# SQS stands on a server of the tests that answers some dozens a second, the fewer the more lie there.
_COUNTS = {"redis": 20_000, "rabbitmq": 20_000, "sqs": 500}
_QUICK = 10
_DRAINED = timedelta(minutes=5)
_LOOK_SECONDS = 0.02
_LEASE_SECONDS = 6.0
_EXPECTED_GAP_SECONDS = _LEASE_SECONDS / RENEWALS_PER_LEASE


def measure_garbage(servers: Servers) -> list[Result]:
    """Measure each kind of garbage on each broker, beside an experiment that runs."""
    return [result for broker in _COUNTS for result in _measure(servers, broker)]


def _measure(servers: Servers, name: str) -> Iterator[Result]:
    folder = Path(tempfile.mkdtemp(prefix=f"garbage-{name}-", dir=servers.folder))
    url, registry = servers.broker_url(name), servers.redis.url
    count = _COUNTS[name] // (_QUICK if servers.is_quick else 1)
    options = {"slot": "cpu", "cpus": "4", "runtime": "process", "lease": f"{_LEASE_SECONDS:.0f}s"}
    with open_site(folder, broker=url, registry=registry, **options) as site, _open(site) as broker:
        patiently(lambda: broker.queues.create(site.queue))
        experiment = site.client.submit(image="any:1", command=["sleep", "3600"], disk="1MiB", cpus=1)
        sound = _message_of(registry, experiment.id)
        with (
            site.make_worker() as worker,
            closing(Redis.from_url(registry)) as redis,
        ):
            wait_until(lambda: experiment.state == "RUNNING", what="an experiment that runs", within=_DRAINED)
            for kind, make in KINDS.items():
                messages = [make(sound) for _ in range(count)]
                with _renewals(redis, experiment.id) as gaps:
                    rates = _drain(site, broker, worker, messages)
                note = f"{rates.wall:.0f}/s of wall, +{rates.memory / 2**20:.0f} MiB, longest gap between renewals "
                note += f"{max(gaps, default=0):.1f} s of {_EXPECTED_GAP_SECONDS:.0f} s"
                print(f"garbage_{name}_{kind}: {rates.core:.0f}/s of a core, {note}", file=sys.stderr, flush=True)
                yield absolute(f"garbage_{name}_{kind}", [rates.core], unit="1/s", note=f"of a core; {note}")
            experiment.cancel()


class _Rates:
    def __init__(self, *, core: float, wall: float, memory: int) -> None:
        self.core, self.wall, self.memory = core, wall, memory


def _drain(site: Site, broker: Broker, worker: Process, messages: Sequence[Garbage]) -> _Rates:
    process = psutil.Process(worker.pid)
    cpu, memory, began = _cpu_seconds(process), process.memory_info().rss, time.monotonic()
    flood(site.settings, site.queue, messages)
    wait_until(lambda: _is_empty(site, broker), what="no garbage left", within=_DRAINED)
    took = time.monotonic() - began
    return _Rates(
        core=len(messages) / (_cpu_seconds(process) - cpu),
        wall=len(messages) / took,
        memory=process.memory_info().rss - memory,
    )


def _is_empty(site: Site, broker: Broker) -> bool:
    return patiently(lambda: broker.queues.depth(site.queue)).ready == 0


def _cpu_seconds(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


@contextmanager
def _renewals(redis: Redis, experiment_id: str) -> Iterator[list[float]]:
    """Yield the times between renewals of a lease, as the registry saw them; full when the block is over."""
    gaps: list[float] = []
    done = threading.Event()

    def look() -> None:
        last, changed_at = None, None
        while not done.wait(_LOOK_SECONDS):
            until, now = redis.hget(f"jobqueue:experiment:{experiment_id}", "until_ms"), time.monotonic()
            if until != last:
                if changed_at is not None:
                    gaps.append(now - changed_at)
                last, changed_at = until, now if last is not None else None

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield gaps
    finally:
        done.set()
        thread.join()


def _message_of(url: str, experiment_id: ExperimentId) -> bytes:
    with closing(open_registry(url)) as registry:
        return registry.experiments.get(experiment_id).submission.message


def _open(site: Site) -> closing[Broker]:
    return closing(open_broker(site.settings.broker, lease=site.settings.lease))
