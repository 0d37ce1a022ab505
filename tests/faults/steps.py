"""The steps at which a worker can be told to die, each as a call in the product: no hook in the product is needed.

A worker of the application `faults.dying_worker` has these calls wrapped, and kills itself in the one whose name stands
in a file, once for each time that the file is written.
"""

import importlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Final

from jobqueue.lifecycle import Reason, State

ARMED: Final = "JOBQUEUE_TESTS_ARMED"
_DYING: Final = ".dying"
# What is said by a container that shall be in the middle of its work.
MIDDLE: Final = b"middle"

Condition = Callable[[tuple[Any, ...]], bool]
_deferring = threading.local()


def arm(armed: Path, step: str) -> None:
    """Let a worker die at a step; `armed` is the file that its variable `ARMED` names."""
    new = armed.with_name(armed.name + ".new")
    new.write_text(step)
    new.rename(armed)


def die(step: str) -> None:
    """Die as of SIGKILL if this is the step that is armed; one worker at a time, once."""
    armed = Path(os.environ[ARMED])
    with suppress(OSError):
        if armed.read_text() == step:
            armed.rename(armed.with_name(armed.name + _DYING))
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()


def has_died(armed: Path) -> bool:
    """Tell whether a worker took the step that was armed, and forget it."""
    dying = armed.with_name(armed.name + _DYING)
    is_dead = dying.exists()
    dying.unlink(missing_ok=True)
    return is_dead


def _enters(state: State) -> Condition:
    return lambda arguments: arguments[1] is state


def _stops(reason: Reason) -> Condition:
    return lambda arguments: arguments[1] is reason


def _says_middle(arguments: tuple[Any, ...]) -> bool:
    return MIDDLE in arguments[2]


def _is_deferring(_arguments: tuple[Any, ...]) -> bool:
    return getattr(_deferring, "is_on", False)


def _always(_arguments: tuple[Any, ...]) -> bool:
    return True


# The module, what is called in it, whether the step is before that call, and of which calls.
STEPS: Final[Mapping[str, tuple[str, str, bool, Condition]]] = {
    "delivered": ("workers.attempt.supervise", "Attempt.run", True, _always),
    "leased": ("workers.attempt.lease_files", "LeaseFile.create", True, _always),
    "created": ("workers.attempt.runtimes.docker", "DockerRuntime._create", False, _always),
    "started": ("workers.attempt.reporting", "Reporter.entered", True, _enters(State.RUNNING)),
    "running": ("workers.attempt.logs", "LogWriter.write", False, _says_middle),
    "exited": ("workers.attempt.reporting", "Reporter.entered", True, _enters(State.FINALIZING)),
    "uploading": ("workers.attempt.outputs", "_upload_one", False, _always),
    "uploaded": ("workers.attempt.commit", "write_marker", True, _always),
    "marked": ("workers.attempt.commit", "write_marker", False, _always),
    "reported": ("jobqueue.registry.redis_leases", "RedisLeases.finish", True, _always),
    "finished": ("workers.delivery.request", "ExperimentRequest.acknowledge", True, _always),
    "deferred": ("kombu.message", "Message.ack", True, _is_deferring),
    "cancelled": ("workers.attempt.watch", "Watch._stop", False, _stops(Reason.CANCELLED_BY_USER)),
    "stopped": ("workers.attempt.watch", "Watch._stop", False, _stops(Reason.DRAINED)),
    "drained": ("workers.bootstrap", "Node.close", True, _always),
}


def _wrap(module_name: str, path: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    owner: Any = importlib.import_module(module_name)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    setattr(owner, name, wraps(getattr(owner, name))(wrapper(getattr(owner, name))))


def _dying(step: str, *, is_before: bool, condition: Condition) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrapper(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if is_before and condition(arguments):
                die(step)
            result = call(*arguments, **options)
            if not is_before and condition(arguments):
                die(step)
            return result

        return wrapped

    return wrapper


def _noting_deferral(call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        _deferring.is_on = True
        try:
            result = call(*arguments, **options)
        finally:
            _deferring.is_on = False
        die("deferred")
        return result

    return wrapped


# Where the broker puts a delivery off by its own means nothing is acknowledged: that step is then after `defer`.
_DEFERRING: Final = (
    ("jobqueue.brokers.rabbitmq", "RabbitDeliveries.defer"),
    ("jobqueue.brokers.redis", "RedisDeliveries.defer"),
    ("jobqueue.brokers.sqs_deliveries", "SqsDeliveries.defer"),
)


def install() -> None:
    """Wrap every call in this process.

    Raises:
        AttributeError, ImportError: the product calls one of them by another name now.
    """
    for step, (module, path, is_before, condition) in STEPS.items():
        _wrap(module, path, _dying(step, is_before=is_before, condition=condition))
    for module, path in _DEFERRING:
        _wrap(module, path, _noting_deferral)
