"""What a worker does for its node when it starts: it keeps a guard there, and looks after what earlier workers left."""

from typing import Any

from celery import signals

# First, because its handlers of the same signals open what is needed here.
import workers.delivery.signals  # noqa: F401
from jobqueue.unprotected import Protection, is_off
from workers.bootstrap import node_of
from workers.node.guarding import GuardStarter
from workers.node.janitor import Janitor


@signals.celeryd_after_setup.connect
def look_after_node(sender: str, instance: Any, **_: Any) -> None:
    """See to it that a guard is there, and adopt or remove what is left, before the first message."""
    del sender
    node = node_of(instance.app)
    if not is_off(Protection.GUARD):
        guard = GuardStarter(node.folder, state_dir=node.settings.state_dir, runtime=node.site.runtime.name)
        guard.start()
        node.companions.callback(guard.close)
    janitor = Janitor(node)
    janitor.start()
    node.companions.callback(janitor.close)
