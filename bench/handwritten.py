"""What one would write without this project: a Celery task that does the same engine calls and nothing else.

Run by `celery -A bench.handwritten worker --pool prefork --concurrency 1`; the shipped settings name the broker.
"""

import functools
import os
from typing import Any

from celery import Celery

TASK = "bench.run_container"
QUEUE = "handwritten"

app = Celery(
    "handwritten",
    broker=os.environ.get("JOBQUEUE_BROKER_URL", ""),
    backend=os.environ.get("JOBQUEUE_REGISTRY_URL", ""),
    set_as_current=False,
)
app.conf.task_default_queue = QUEUE


@functools.cache
def _client() -> Any:
    from docker import APIClient

    return APIClient(base_url=os.environ["DOCKER_HOST"])


@app.task(name=TASK)
def run_container(body: dict[str, Any]) -> int:
    """Run one container and return how much it printed."""
    from bench.raw_engine import run_container as run

    return len(run(_client(), body))
