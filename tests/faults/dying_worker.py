"""The application of a worker that can be told to die: `celery -A faults.dying_worker worker`."""

from faults.steps import install
from jobqueue.celery import app

__all__ = ["app"]

install()
