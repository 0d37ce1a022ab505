"""The shipped application, which notes when a container is asked for: `celery -A bench.traced worker`.

The file that BENCH_TRACE names gets a line for each start: the experiment's id, and the time of the epoch in seconds.
"""

import os
import time

from jobqueue.celery import app
from workers.attempt.runtimes.base import Container, Plan
from workers.attempt.runtimes.docker import DockerRuntime

__all__ = ["app"]

_start = DockerRuntime.start


def _noted_start(self: DockerRuntime, plan: Plan) -> Container:
    requested_at = time.time()
    container = _start(self, plan)
    with open(os.environ["BENCH_TRACE"], "a", encoding="utf-8") as trace:  # noqa: PTH123 - the cheapest way
        trace.write(f"{plan.labels.experiment_id} {requested_at:.6f}\n")
    return container


DockerRuntime.start = _noted_start  # type: ignore[method-assign]
