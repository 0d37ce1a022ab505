"""What goes with a request queue that is deleted: its companions, its messages, and its experiments."""

from dataclasses import dataclass
from functools import partial

from jobqueue.brokers.base import Broker
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Reason
from jobqueue.registry.base import Experiments
from jobqueue.routing import reporting_queue
from jobqueue.storage.base import Store
from producers.ending import mark_cancelled

_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """What became of the experiments of a queue.

    Attributes:
        cancelled: how many are over now.
        stopping: how many run, and will be stopped by their workers.
    """

    cancelled: int
    stopping: int


def delete_queue(queue: str, *, broker: Broker, experiments: Experiments, store: Store) -> Deleted:
    """Delete a request queue with its companions, then cancel what was submitted to it and is not over.

    In this order, so that nothing is started any more; what is submitted meanwhile finds no queue and is withdrawn.
    Whatever fails, it can be done again.
    """
    broker.queues.delete(queue)
    if broker.queues.exists(reporting_queue(queue)):
        broker.queues.delete(reporting_queue(queue))
    return _cancel_open(queue, experiments=experiments, store=store)


def _cancel_open(queue: str, *, experiments: Experiments, store: Store) -> Deleted:
    cancelled, stopping = 0, set[ExperimentId]()
    while True:
        found = experiments.find(queue=queue, limit=len(stopping) + _AT_ONCE)
        open_ids = [record.submission.id for record in found if record.submission.id not in stopping]
        if not open_ids:
            return Deleted(cancelled=cancelled, stopping=len(stopping))
        for experiment_id in open_ids:
            if experiments.cancel(experiment_id, reason=Reason.QUEUE_DELETED).is_final:
                cancelled += 1
                look = partial(experiments.get, experiment_id)
                mark_cancelled(experiment_id, open_store=lambda: store, look=look)
            else:
                stopping.add(experiment_id)
