"""What an experiment costs from its submission to its end, when it does nothing."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from celery import Celery
from services.images import BUSYBOX
from services.process import Process
from services.site import Site

from bench import handwritten
from bench.raw_engine import make_body, run_container
from bench.results import Result, absolute, compare
from bench.sampling import interleave, seconds
from bench.servers import Servers

_ROUNDS = 40
_MB = 1e6


def measure_overhead(servers: Servers, broker: str) -> list[Result]:
    """Measure submit to final against the engine alone, and against a task written by hand."""
    with servers.site(broker) as site, _workers(servers, site) as app:
        folder = site.folder / "raw"
        folder.mkdir()
        body = make_body(BUSYBOX, ("true",), folder)
        samples = interleave(
            servers.rounds(_ROUNDS),
            {
                "ours": lambda: seconds(lambda: run_experiment(site)),
                "engine": lambda: seconds(lambda: run_container(servers.engine.client.api, body)),
                "task": lambda: seconds(lambda: _run_task(app, body)),
            },
        )
    ours, engine, task = ([1000 * value for value in samples[name]] for name in ("ours", "engine", "task"))
    name = f"experiment_overhead_{broker}"
    return [
        compare(name, ours, engine, unit="ms", note="docker-py: create, start, wait, logs, remove"),
        compare(f"{name}_celery", ours, task, unit="ms", note="a Celery task with the same calls, prefork -c 1"),
    ]


def measure_start_latency(servers: Servers) -> list[Result]:
    """Measure from the call of submit to the moment when the worker asks the engine for the container."""
    latencies: dict[str, list[float]] = {}
    for broker in ("redis", "rabbitmq"):
        with servers.site(broker) as site:
            trace = site.folder / "trace"
            worker = servers.celery_worker(site, name="traced", app="bench.traced", BENCH_TRACE=str(trace))
            with worker:
                submitted = _submit_all(site, servers.rounds(_ROUNDS))
            requested = dict(line.split() for line in trace.read_text().splitlines())
            latencies[broker] = [1000 * (float(requested[key]) - at) for key, at in submitted.items()]
    note = "p50, submit called to container start requested, by"
    return [
        absolute(f"start_latency_{name}", found, unit="ms", note=f"{note} {name}") for name, found in latencies.items()
    ]


def measure_slot_memory(servers: Servers) -> list[Result]:
    """Measure what an idle worker takes after an experiment, against Celery's own worker after a task."""
    values: dict[str, list[tuple[float, float]]] = {"ours": [], "guard": [], "task": []}
    for _ in range(servers.rounds(3)):
        with servers.site("redis") as site:
            worker = site.make_worker(environment=servers.engine_environment)
            plain = _plain_worker(servers, site)
            with worker, plain, _application(site) as app:
                folder = site.folder / "raw"
                folder.mkdir()
                run_experiment(site)
                _run_task(app, make_body(BUSYBOX, ("true",), folder))
                slot, guard = _split(worker)
                values["ours"].append(_memory(slot))
                values["guard"].append(_memory(guard))
                values["task"].append(_memory(_split(plain)[0]))
    (ours_rss, ours_pss), (task_rss, task_pss) = (zip(*values[name], strict=True) for name in ("ours", "task"))
    guard_rss, guard_pss = zip(*values["guard"], strict=True)
    note = "a Celery worker of one task, prefork -c 1, both processes"
    return [
        compare("slot_memory", ours_rss, task_rss, unit="MB", note=f"RSS; {note}"),
        compare("slot_memory_pss", ours_pss, task_pss, unit="MB", note=f"PSS; {note}"),
        absolute("guard_memory", guard_rss, unit="MB", note="RSS; once a machine, whatever its slots"),
        absolute("guard_memory_pss", guard_pss, unit="MB", note="PSS; once a machine, whatever its slots"),
    ]


def run_experiment(site: Site) -> None:
    """Run an experiment that does nothing, to its end as its handle sees it."""
    site.client.submit(image=BUSYBOX, command=["true"]).result(timeout=60)


@contextmanager
def _workers(servers: Servers, site: Site) -> Iterator[Celery]:
    worker = site.make_worker(environment=servers.engine_environment)
    with worker, _plain_worker(servers, site), _application(site) as app:
        yield app


def _plain_worker(servers: Servers, site: Site) -> Process:
    return servers.celery_worker(site, name="plain", app="bench.handwritten", pool="prefork")


@contextmanager
def _application(site: Site) -> Iterator[Celery]:
    app = Celery("caller", broker=site.settings.broker, backend=site.settings.registry, set_as_current=False)
    app.conf.task_default_queue = handwritten.QUEUE
    try:
        yield app
    finally:
        app.close()


def _run_task(app: Celery, body: dict[str, Any]) -> None:
    app.send_task(handwritten.TASK, args=(body,)).get(timeout=60)


def _submit_all(site: Site, rounds: int) -> dict[str, float]:
    """Return when each experiment was submitted; the first one, which opens every connection, is left out."""
    run_experiment(site)
    submitted = {}
    for _ in range(rounds):
        began = time.time()
        experiment = site.client.submit(image=BUSYBOX, command=["true"])
        submitted[str(experiment.id)] = began
        experiment.result(timeout=60)
    return submitted


def _split(worker: Process) -> tuple[list[int], list[int]]:
    """Return the processes of a worker, and its machine's guard, which has a session of its own."""
    family = [worker.pid, *(child.pid for child in psutil.Process(worker.pid).children(recursive=True))]
    session = os.getsid(worker.pid)
    return [pid for pid in family if os.getsid(pid) == session], [pid for pid in family if os.getsid(pid) != session]


def _memory(family: Iterable[int]) -> tuple[float, float]:
    """Return RSS and PSS in MB of some processes together."""
    return tuple(sum(_rollup(pid, kind) for pid in family) / _MB for kind in ("Rss", "Pss"))  # type: ignore[return-value]


def _rollup(pid: int, kind: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))
