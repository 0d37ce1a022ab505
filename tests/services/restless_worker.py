"""The application of a worker that looks for a free node every second: `celery -A services.restless_worker worker`."""

from datetime import timedelta

from jobqueue.celery import app
from workers.attempt import turn

__all__ = ["app"]

turn.LOOK_ELSEWHERE = timedelta(seconds=1)  # type: ignore[misc]  # a constant of the product
