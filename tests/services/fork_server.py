"""What workers are copies of in the tests: a process that has loaded all that a worker does, and has run nothing of it.

A worker works for a second until it has loaded Celery and ours, which is most of what a test of it costs. Run as

    python -m services.fork_server <file descriptor of a socket>

It is asked line by line, in JSON: to start `python -m <module> <words>` with an environment, a folder and a log, or for
the end of one that was started. It opens nothing, runs no thread, and ends with whoever asks.
"""

import gc
import importlib
import json
import os
import runpy
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

# In the order in which a worker does it; `jobqueue.celery` is left out, which reads the environment.
_LOADED: Final = (
    "celery.bin.celery",
    "jobqueue.application",
    "workers.delivery.pool",
    "celery.apps.worker",
    "celery.worker.strategy",
    "celery.worker.autoscale",
    "kombu.asynchronous.hub",
    "kombu.transport.redis",
    "kombu.transport.pyamqp",
    "jobqueue.brokers.rabbitmq",
    "jobqueue.brokers.rabbitmq_transport",
    "jobqueue.brokers.redis",
    "jobqueue.brokers.redis_transport",
    "jobqueue.brokers.sqs",
    "jobqueue.brokers.sqs_transport",
    "jobqueue.registry.redis",
    "jobqueue.storage.folder",
    "jobqueue.storage.obstore",
    "workers.delivery.consumer",
    "workers.delivery.tasks",
    "workers.delivery.signals",
    "workers.node.signals",
    "workers.attempt.runtimes.docker",
    "workers.attempt.runtimes.process",
)


def main() -> None:
    """Answer until nobody asks any more; or, in a copy, be what was asked for."""
    own = _search_path(os.environ)
    for name in _LOADED:
        importlib.import_module(name)
    gc.collect()
    # What is never written stays shared with every copy.
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        wanted = _serve(channel)
    if wanted is not None:
        sys.argv = [sys.argv[0], *wanted["words"]]
        found = _search_path(wanted["environment"])
        sys.path[:] = [str(Path.cwd()), *found, *(entry for entry in sys.path[1:] if entry not in own)]
        runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)


def _search_path(environment: Mapping[str, str]) -> list[str]:
    return [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Return what this process is to be, in a copy; None once nobody asks."""
    with channel.makefile("r") as lines:
        for line in lines:
            asked: dict[str, Any] = json.loads(line)
            if "ended" in asked:
                answer = os.waitpid(asked["ended"], 0)[1]
            else:
                answer = _copy(asked)
                if not answer:
                    return asked
            channel.sendall(f"{answer}\n".encode())
    return None


def _copy(asked: dict[str, Any]) -> int:
    """Return the id of a copy of this process once it has a session of its own; in that, 0."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        _settle(asked)
        os.close(reader)
    os.close(writer)
    if pid:
        os.read(reader, 1)
        os.close(reader)
    return pid


def _settle(asked: dict[str, Any]) -> None:
    """Give a copy what a new process would have been given."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])


if __name__ == "__main__":
    main()
