"""What happens when a worker starts and stops, told by Celery's signals."""

import logging
import sys
from typing import Any, Final, NoReturn

from celery import current_app, signals

from jobqueue.brokers import open_broker
from jobqueue.errors import InvalidSetting, JobqueueError
from jobqueue.routing import is_request_queue, request_queues
from workers.attempt.patience import log_retries
from workers.bootstrap import Node, attach, node_of
from workers.delivery import control  # noqa: F401 - it registers what Celery's remote control may ask
from workers.delivery.compression import refuse_compressed_bodies
from workers.delivery.lines import make_formatter

log = logging.getLogger(__name__)

EX_UNAVAILABLE: Final = 69


@signals.celeryd_init.connect
def fill_defaults(sender: str, instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Choose the queues and the name of a worker that was started without them."""
    refuse_compressed_bodies()
    settings = conf.jobqueue_settings
    cpu_queue, _gpu_queue = request_queues(settings.project)
    given = options.get("queues")
    names = tuple(given.split(",") if isinstance(given, str) else given or settings.queues or (cpu_queue,))
    for name in names:
        if not is_request_queue(name):
            told = f"{name} is a companion of a request queue, no request queue"
            _give_up(InvalidSetting(told, hint="name the request queue; its companions are served with it"))
    broker = open_broker(settings.broker, lease=settings.lease)
    conf.task_queues = [consumed for name in names for consumed in broker.consumed(name)]
    broker.close()
    name, _at, host = sender.partition("@")
    if name == "celery":
        instance.hostname = f"cpu@{host}"


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
    queues = tuple(queue.name for queue in sender.app.conf.task_queues if is_request_queue(queue.name))
    try:
        node = Node(settings, worker_name=sender.hostname, queues=queues)
    except JobqueueError as error:
        _give_up(error)
    log_retries()
    attach(sender.app, node)
    signals.worker_shutting_down.connect(node.asked_to_stop, weak=False)


@signals.celeryd_after_setup.connect
def start_node(sender: str, instance: Any, **_: Any) -> None:
    """Tidy up and say that it is there, once log lines have their shape and before the first message."""
    del sender
    try:
        node_of(instance.app).start()
    except JobqueueError as error:
        _give_up(error)


@signals.worker_ready.connect
def say_ready(sender: Any, **_: Any) -> None:
    """Say what this worker serves."""
    node = node_of(sender.app)
    log.info("worker.ready", extra={"worker": node.site.worker_id, "queues": ",".join(node.queues)})


@signals.worker_shutdown.connect
def close_node(sender: Any, **_: Any) -> None:
    """Close everything."""
    node_of(sender.app).close()


def _give_up(error: JobqueueError) -> NoReturn:
    """End the worker; anything but a SystemExit would be logged and passed over."""
    sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    raise SystemExit(EX_UNAVAILABLE) from None
