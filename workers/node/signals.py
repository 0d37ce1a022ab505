"""What a worker looks after beside its queues: its node's guard, what earlier workers left, and lost experiments."""

from typing import Any

from celery import signals

# First, because its handlers of the same signals open what is needed here.
import workers.delivery.signals  # noqa: F401
from jobqueue.publishing import Publisher
from jobqueue.unprotected import Protection, is_off
from workers.bootstrap import node_of
from workers.node.guarding import GuardStarter
from workers.node.janitor import Janitor
from workers.node.sweep import Sweeper


@signals.celeryd_after_setup.connect
def look_after_node(sender: str, instance: Any, **_: Any) -> None:
    """See to it that a guard is there, and adopt or remove what is left, before the first message."""
    del sender
    node = node_of(instance.app)
    if not is_off(Protection.GUARD):
        guard = GuardStarter(node.folder, state_dir=node.settings.state_dir, runtime=node.site.runtime.name)
        guard.start()
        node.companions.callback(guard.close)
        signals.worker_shutdown.connect(lambda **_: guard.await_end(), weak=False)
    janitor = Janitor(node)
    janitor.start()
    node.companions.callback(janitor.close)
    if not is_off(Protection.SWEEP):
        sweeper = Sweeper(node, Publisher(broker=lambda: node.broker, app=lambda: instance.app))
        sweeper.start()
        node.companions.callback(sweeper.close)
