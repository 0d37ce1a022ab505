"""Celery's remote control, where it means something else here: a revoked experiment is cancelled.

Celery's own revoke is a list in the memory of the workers that are up; it leaves alone what runs unless it is told to
terminate it, and forgets the rest when they stop. Here any worker that hears of it puts the user's tombstone, whoever
runs the experiment and whether or not anybody has its message yet.
"""

import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from celery.worker.control import control_command
from celery.worker.state import revoked
from kombu.utils.functional import maybe_list

from jobqueue.errors import JobqueueError, RegistryUnavailable
from jobqueue.ids import ExperimentId, is_experiment_id
from jobqueue.lifecycle import Reason
from jobqueue.registry.base import Experiments
from workers.attempt.patience import patiently
from workers.bootstrap import Node, node_of

log = logging.getLogger(__name__)


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(state: Any, task_id: Any, **_: Any) -> dict[str, str]:
    """Cancel experiments, those that run and those that wait, whether or not they are to be terminated."""
    return _cancel_all(node_of(state.app), task_id)


@control_command(variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]")
def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:
    """Cancel experiments; a container is always asked before it is killed."""
    del signal
    return _cancel_all(node_of(state.app), task_id)


def _cancel_all(node: Node, task_id: Any) -> dict[str, str]:
    experiment_ids = [ExperimentId(each) for each in map(str, maybe_list(task_id) or ()) if is_experiment_id(each)]
    revoked.update(experiment_ids)
    for experiment_id in experiment_ids:
        node.ask(experiment_id, Reason.CANCELLED_BY_USER)
    # The registry may be slow; the main thread has heartbeats to send.
    threading.Thread(
        target=_cancel, args=(node.site.registry.experiments, experiment_ids), name="revoke", daemon=True
    ).start()
    return {"ok": f"cancelled: {', '.join(experiment_ids) or 'none, for these are no experiments'}"}


def _cancel(experiments: Experiments, experiment_ids: Sequence[ExperimentId]) -> None:
    for experiment_id in experiment_ids:
        try:
            patiently(RegistryUnavailable, partial(experiments.cancel, experiment_id))
        except JobqueueError as error:
            log.warning("cancel.not_recorded", extra={"experiment": experiment_id, "error": error.message})
