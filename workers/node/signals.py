"""What a worker looks after beside its queues: its node's guard, what earlier workers left, and lost experiments."""

import sys
from typing import Any

from celery import signals

# First, because its handlers of the same signals open what is needed here.
import workers.delivery.signals  # noqa: F401
from jobqueue.errors import InvalidSetting
from jobqueue.publishing import Publisher
from jobqueue.unprotected import Protection, is_off
from workers.bootstrap import node_of
from workers.delivery.signals import give_up, read_selection
from workers.hardware.devices import Presence
from workers.hardware.machine import count_cores
from workers.hardware.nvml import NvmlDevices
from workers.hardware.slots import has_driver, make_slots
from workers.hardware.stock import take_stock
from workers.node.caches import CacheKeeper
from workers.node.guarding import GuardStarter
from workers.node.janitor import Janitor
from workers.node.leaving import Leaver, parse_leave
from workers.node.serve import Serving, become
from workers.node.sweep import Sweeper


@signals.celeryd_init.connect
def choose_end(conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Read when this worker is to end by itself; a mistake is told before anything is started."""
    settings = conf.jobqueue_settings
    idle, experiments = options.get("exit_when_idle"), options.get("max_experiments")
    try:
        conf.jobqueue_leave = parse_leave(idle or settings.exit_when_idle, experiments or settings.max_experiments)
    except InvalidSetting as error:
        give_up(error)


@signals.celeryd_init.connect
def serve_machine(sender: str, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Become the server of a machine with devices, unless this process was told which part of it to serve."""
    settings = conf.jobqueue_settings
    words = (settings.slot, options.get("slot"), options.get("concurrency"), _names_queues(conf, options))
    is_whole = sender.startswith("celery@") and not any(words)
    if not (is_whole and "worker" in sys.argv and has_driver()):
        return
    devices = NvmlDevices()
    try:
        stock = take_stock(devices)
    except InvalidSetting as error:
        give_up(error)
    finally:
        devices.close()
    if stock.inventory.presence is Presence.UNKNOWN:
        sys.stderr.write(f"warning: {stock.inventory.detail}; serving CPU queues only\n")
    if stock.devices:
        cores = max(1, count_cores(settings.cpus) - len(stock.devices))
        slots = {str(slot): 1 if slot.has_device else cores for slot in make_slots(stock.devices)}
        serving = Serving(
            state_dir=str(settings.state_dir),
            log_format=settings.log_format,
            slots=slots,
            pidfile=options.get("pidfile") or "",
        )
        become(serving, sys.argv[1:])


def _names_queues(conf: Any, options: dict[str, Any]) -> bool:
    """Tell whether a queue was named; patterns are for every slot, which takes of what they find what suits it."""
    try:
        return bool(read_selection(conf, options).names)
    except InvalidSetting as error:
        give_up(error)


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
    caches = CacheKeeper(node.site.inputs, node.site.runtime)
    caches.start()
    node.companions.callback(caches.close)
    if not is_off(Protection.SWEEP):
        sweeper = Sweeper(node, Publisher(broker=lambda: node.broker, app=lambda: instance.app))
        sweeper.start()
        node.companions.callback(sweeper.close)
    leave = instance.app.conf.jobqueue_leave
    node.most = leave.experiments
    leaver = Leaver(node, leave)
    leaver.start()
    node.companions.callback(leaver.close)
