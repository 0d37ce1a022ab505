"""How many experiments one process hands over in a second: sealed, signed, registered, confirmed by the broker."""

from datetime import timedelta
from typing import Any

from celery import Celery
from services.images import BUSYBOX
from services.site import Site

from bench.results import Result, compare
from bench.sampling import interleave, seconds
from bench.servers import Servers
from jobqueue.ids import NodeId, WorkerId
from jobqueue.registry import open_registry
from jobqueue.registry.presence import WorkerRecord
from jobqueue.resources import Offer

_ROUNDS = 12
_BATCH = 128
_SPEC: dict[str, Any] = {"image": BUSYBOX, "command": ["true"]}


def measure_submit_rate(servers: Servers) -> list[Result]:
    """Measure against `send_task` with Celery's defaults; on RabbitMQ with confirms too, which are off by default."""
    results = []
    for broker in ("redis", "rabbitmq"):
        results += _measure(servers, broker)
    return results


def _measure(servers: Servers, broker: str) -> list[Result]:
    batch = 10 if servers.is_quick else _BATCH
    with servers.site(broker) as site:
        _announce(site)
        bare = _bare(site)
        measures = {
            "ours": lambda: batch / seconds(lambda: site.client.submit_many([_SPEC] * batch)),
            "single": lambda: batch / seconds(lambda: _submit(site, batch)),
            "bare": lambda: batch / seconds(lambda: _send(bare, batch)),
        }
        if broker == "rabbitmq":
            confirming = _bare(site, broker_transport_options={"confirm_publish": True})
            measures["confirmed"] = lambda: batch / seconds(lambda: _send(confirming, batch))
        samples = interleave(servers.rounds(_ROUNDS), measures)
    default = (
        "Celery's defaults (RPUSH, acknowledged by Redis)" if broker == "redis" else "Celery's defaults (no confirms)"
    )
    pairs = {
        "": ("ours", "bare", f"submit_many, against send_task with {default}"),
        "_single": ("single", "bare", f"submit, one after the other, against send_task with {default}"),
        "_single_confirmed": (
            "single",
            "confirmed",
            "submit, one after the other, against send_task with confirm_publish",
        ),
    }
    return [
        compare(f"submit_rate_{broker}{suffix}", samples[ours], samples[theirs], unit="1/s", note=note)
        for suffix, (ours, theirs, note) in pairs.items()
        if theirs in samples
    ]


def _submit(site: Site, count: int) -> None:
    for _ in range(count):
        site.client.submit(**_SPEC)


def _send(app: Celery, count: int) -> None:
    for index in range(count):
        app.send_task("bench.nothing", args=({"image": BUSYBOX, "command": ["true"], "index": index},))


def _bare(site: Site, **conf: Any) -> Celery:
    app = Celery("bare", broker=site.settings.broker, set_as_current=False)
    app.conf.update(task_default_queue=f"bare{len(conf)}", **conf)
    return app


def _announce(site: Site) -> None:
    """Say that somebody serves the queue, as on any real site, so that no warning is made for each submission."""
    offer = Offer(cpus=1, memory_bytes=2**30, disk_bytes=2**30)
    worker = WorkerRecord(
        worker_id=WorkerId("bench"), node_id=NodeId("bench"), queues=(site.queue,), offer=offer, runtime="docker"
    )
    registry = open_registry(site.settings.registry)
    registry.workers.announce(worker, ttl=timedelta(hours=1))
    registry.close()
