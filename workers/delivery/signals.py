"""What happens when a worker starts and stops, told by Celery's signals."""

import logging
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from celery import current_app, signals

from jobqueue.brokers import open_broker
from jobqueue.errors import InvalidSetting, JobqueueError
from jobqueue.routing import Selection, parse_selection, request_queues
from workers.attempt.patience import log_retries
from workers.bootstrap import Node, attach, node_of
from workers.delivery import control  # noqa: F401 - it registers what Celery's remote control may ask
from workers.delivery.compression import refuse_compressed_bodies
from workers.delivery.ends import Ends
from workers.delivery.lines import make_formatter
from workers.delivery.refusals import Refusals
from workers.delivery.scout import Scout
from workers.delivery.shared import Shared, share, shared_by
from workers.hardware.machine import count_cores
from workers.hardware.slots import Slot, parse_slot

log = logging.getLogger(__name__)

EX_UNAVAILABLE: Final = 69
_TOLD: Final = 20


@signals.celeryd_init.connect
def fill_defaults(sender: str, instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Choose the queues and the name of a worker that was started without them."""
    refuse_compressed_bodies()
    settings = conf.jobqueue_settings
    slot = conf.jobqueue_slot = _choose_slot(options.get("slot") or settings.slot, conf, options.get("concurrency"))
    try:
        selection = read_selection(conf, options)
    except InvalidSetting as error:
        give_up(error)
    if not selection.words:
        cpu_queue, gpu_queue = request_queues(settings.project)
        selection = Selection(names=(gpu_queue if slot and slot.has_device else cpu_queue,))
    conf.jobqueue_selection = selection
    broker = open_broker(settings.broker, lease=settings.lease)
    conf.task_queues = [consumed for name in selection.names for consumed in broker.consumed(name)]
    # For patterns something stands there that is not consumed: Celery takes its options, as they are, for names.
    words = {*selection.words, *_words(options)}
    conf.task_queues += [broker.request_queue(word) for word in words.difference(selection.names)]
    broker.close()
    name, _at, host = sender.partition("@")
    if name == "celery":
        instance.hostname = f"{slot.name if slot else 'cpu'}@{host}"


def read_selection(conf: Any, options: dict[str, Any]) -> Selection:
    """Return what the options of a worker, else its settings, say that it is to serve; nothing when they do not.

    Raises:
        InvalidSetting: a word can be neither a queue's name nor a pattern.
    """
    return parse_selection(_words(options) or conf.jobqueue_settings.queues)


def _words(options: dict[str, Any]) -> Sequence[str]:
    given = options.get("queues") or ()
    return given.split(",") if isinstance(given, str) else given


def _choose_slot(name: str, conf: Any, concurrency: Any) -> Slot | None:
    """Return the slot of this worker, and give it its places where nobody said how many."""
    try:
        slot = parse_slot(name) if name else None
    except InvalidSetting as error:
        give_up(error)
    if slot and slot.has_device and concurrency not in (None, 1):
        told = f"{slot.name} has one place, not {concurrency}"
        give_up(InvalidSetting(told, hint="leave -c out: a device is given as a whole"))
    if concurrency is None:
        is_cores = slot and not slot.has_device
        conf.worker_concurrency = count_cores(conf.jobqueue_settings.cpus) if is_cores else 1
    return slot


@signals.after_setup_logger.connect
@signals.after_setup_task_logger.connect
def format_lines(logger: logging.Logger, **_: Any) -> None:
    """Give every line one shape."""
    formatter = make_formatter(current_app.conf.jobqueue_settings.log_format)
    for handler in logger.handlers:
        handler.setFormatter(formatter)


@signals.worker_init.connect
def open_node(sender: Any, **_: Any) -> None:
    """Open everything that experiments need, before the first message; without it there is no worker."""
    settings = sender.app.conf.jobqueue_settings
    selection = sender.app.conf.jobqueue_selection
    try:
        slot = sender.app.conf.jobqueue_slot
        places = sender.concurrency if isinstance(sender.concurrency, int) else count_cores(settings.cpus)
        node = Node(settings, worker_name=sender.hostname, queues=selection.names, slot=slot, places=places)
    except JobqueueError as error:
        give_up(error)
    log_retries()
    attach(sender.app, node)
    scout = Scout(node, selection, refresh=settings.queue_refresh)
    share(sender.app, Shared(ends=Ends(), refusals=Refusals(node), scout=scout))
    signals.worker_shutting_down.connect(node.asked_to_stop, weak=False)


@signals.celeryd_after_setup.connect
def start_node(sender: str, instance: Any, **_: Any) -> None:
    """Tidy up and say that it is there, once log lines have their shape and before the first message."""
    del sender
    node, scout = node_of(instance.app), shared_by(instance.app).scout
    try:
        node.start()
        node.companions.callback(scout.close)
        scout.start()
    except JobqueueError as error:
        give_up(error)


@signals.worker_ready.connect
def say_ready(sender: Any, **_: Any) -> None:
    """Say what this worker serves."""
    node = node_of(sender.app)
    more = f" and {len(node.queues) - _TOLD} more" if len(node.queues) > _TOLD else ""
    log.info("worker.ready", extra={"worker": node.site.worker_id, "queues": ",".join(node.queues[:_TOLD]) + more})


@signals.worker_shutdown.connect
def close_node(sender: Any, **_: Any) -> None:
    """Close everything."""
    node_of(sender.app).close()


def give_up(error: JobqueueError) -> NoReturn:
    """End the worker; anything but a SystemExit would be logged and passed over."""
    sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    raise SystemExit(EX_UNAVAILABLE) from None
