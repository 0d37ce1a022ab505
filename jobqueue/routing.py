"""Queue names: which queue an experiment goes to, and what its companions are called.

Names hold letters, digits, `-` and `_` only and stay under 80 characters with every suffix, because SQS allows no more.
"""

from typing import Final

from jobqueue.errors import InvalidSpec, Problem
from jobqueue.spec import ExperimentSpec

REPORTING: Final = "_reporting"
DEFERRED: Final = "_deferred"
DEAD: Final = "_dead"
FIRST: Final = "_first"
COMPANIONS: Final = (REPORTING, DEFERRED, DEAD, FIRST)


def request_queues(project: str) -> tuple[str, str]:
    """Return the project's pair of request queues: for CPU work, for GPU work."""
    return f"{project}_cpu", f"{project}_gpu"


def choose_queue(spec: ExperimentSpec) -> str:
    """Return the request queue of an experiment: the one it names, else by its project and resources.

    Raises:
        InvalidSpec: it names a companion, where nothing runs.
    """
    cpu_queue, gpu_queue = request_queues(spec.project)
    queue = spec.queue or (gpu_queue if spec.gpus else cpu_queue)
    if not is_request_queue(queue):
        raise InvalidSpec([Problem(path="queue", message=f"{queue!r} is no request queue (leave its ending out)")])
    return queue


def reporting_queue(queue: str) -> str:
    """Return where the reports of a request queue's experiments go, if somebody has created it."""
    return queue + REPORTING


def deferred_queue(queue: str) -> str:
    """Return where deliveries wait that were put off."""
    return queue + DEFERRED


def dead_letter_queue(queue: str) -> str:
    """Return where messages lie that can never be processed."""
    return queue + DEAD


def first_queue(queue: str) -> str:
    """Return where messages lie that are served before those of a request queue: what has waited once already."""
    return queue + FIRST


def is_first_queue(name: str) -> bool:
    """Tell whether it is one that is served before another."""
    return name.endswith(FIRST)


def served_queue(name: str) -> str:
    """Return the request queue whose experiments come through a queue that workers consume."""
    return name.removesuffix(FIRST)


def is_request_queue(name: str) -> bool:
    """Tell whether a name is that of a request queue, not of a companion."""
    return not name.endswith(COMPANIONS)
