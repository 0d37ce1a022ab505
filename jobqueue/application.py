"""The Celery application: one configuration for producers, workers, `celery` commands and Flower."""

from typing import TYPE_CHECKING, Any, Final

from jobqueue.brokers import open_broker
from jobqueue.config import Settings
from jobqueue.dashboard import guard_dashboard

if TYPE_CHECKING:
    from celery import Celery

TASK: Final = "jobqueue.run_experiment"
SERIALIZER: Final = "jobqueue"
CONTENT_TYPE: Final = "application/vnd.jobqueue.envelope"

_WORKER_OPTIONS: Final = {
    "--slot": "Serve one slot of this machine: cpu, gpu0, gpu1 ...",
    "--exit-when-idle": "End once nothing has run on this machine for so long, as in 15m.",
    "--max-experiments": "End each slot once it has run so many experiments.",
}
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def make_app(settings: Settings) -> "Celery":
    """Return a Celery application for one set of settings; nothing is opened.

    Worker parts are named as text, so that a producer's process never loads them.
    """
    from celery import Celery, signals
    from click import Option
    from kombu.serialization import register

    encode: Any = _to_body
    register(SERIALIZER, encode, _from_body, content_type=CONTENT_TYPE, content_encoding="binary")
    app = Celery("jobqueue", set_as_current=False)
    broker = open_broker(settings.broker, lease=settings.lease, events_url=settings.events)
    app.conf.update(
        **_general(settings),
        **broker.celery_settings(),
    )
    app.conf.jobqueue_settings = settings
    signals.import_modules.connect(guard_dashboard, dispatch_uid=guard_dashboard.__qualname__)
    for name, said in _WORKER_OPTIONS.items():
        app.user_options["worker"].add(Option((name,), help=said))
    return app


def _general(settings: Settings) -> dict[str, Any]:
    return {
        "imports": ("workers.delivery.tasks", "workers.delivery.signals", "workers.node.signals"),
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json", SERIALIZER],
        "task_acks_late": True,
        "task_acks_on_failure": True,
        "task_acks_on_timeout": True,
        "task_reject_on_worker_lost": False,
        "task_ignore_result": True,
        "task_track_started": True,
        "task_create_missing_queues": False,
        "task_queues": (),
        "task_send_sent_event": False,
        "worker_pool": "workers.delivery.pool:SlotPool",
        "worker_consumer": "workers.delivery.consumer:Consumer",
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_enable_remote_control": settings.remote_control,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_enable_prefetch_count_reduction": False,
        "worker_disable_rate_limits": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "broker_channel_error_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_pool_acquire_timeout": 10,
        "enable_utc": True,
        "timezone": "UTC",
        "task_default_queue": f"{settings.project}_cpu",
    }


def _to_body(payload: Any) -> bytes:
    """Return the message body: the one argument of the task, the sealed envelope, and nothing else."""
    (sealed,), kwargs, embed = payload
    if kwargs or any(embed.values()) or not isinstance(sealed, bytes):
        raise ValueError(f"{SERIALIZER} carries one sealed envelope and nothing else")
    return sealed


def _from_body(body: Any) -> tuple[tuple[bytes], dict[str, object], dict[str, object]]:
    """Return Celery's view of a message body; it is verified before and opened after, not here."""
    return (bytes(body),), {}, dict(_EMBED)
