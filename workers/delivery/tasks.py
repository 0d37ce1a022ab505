"""The one task: what a request message asks for. Importing it loads no container engine and no device library."""

from datetime import UTC, datetime
from typing import Any

from celery import Task, shared_task
from celery.worker.state import revoked

from jobqueue.application import TASK
from jobqueue.envelope import verify
from jobqueue.lifecycle import Reason, State
from jobqueue.routing import served_queue
from workers.attempt.supervise import Attempt, Ended, PutOff
from workers.bootstrap import node_of
from workers.delivery.disposition import ExperimentEnded, HandedBack, ended


@shared_task(
    bind=True,
    name=TASK,
    base=Task,
    acks_late=True,
    ignore_result=True,
    throws=(ExperimentEnded, HandedBack),
    Request="workers.delivery.request:ExperimentRequest",
)
def run_experiment(self: Any, sealed: bytes) -> dict[str, object]:
    """Run the experiment that `sealed` describes, or find out that somebody else does.

    Returns:
        The final state and the exit code; for Celery's events only.

    Raises:
        ExperimentEnded: final, and not a success.
        HandedBack: not final; the message comes back later.
    """
    node = node_of(self.app)
    queue = served_queue(self.request.delivery_info["routing_key"])
    message = verify(sealed, keys=node.site.keys, queue=queue, now=datetime.now(UTC))
    with node.running(message.header.experiment_id, Attempt(node.site, message), self.request.properties) as attempt:
        if self.request.id in revoked:  # a registry that has not known it can keep no tombstone for it
            attempt.ask(Reason.CANCELLED_BY_USER)
        match attempt.run():
            case PutOff() as put_off:
                raise HandedBack(put_off.sentence, put_off.delay.total_seconds())
            case Ended(state=State.SUCCEEDED):
                return {"state": State.SUCCEEDED.value, "exit_code": 0}
            case Ended() as result:
                raise ended(result)
