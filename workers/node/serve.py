"""The server of a machine: one worker process for each slot.

`celery -A jobqueue worker` becomes this program where it finds devices (`workers/node/signals.py`):

    python -m workers.node.serve <what to serve, as JSON> <the words after `celery`>

It loads nothing of Celery, brokers and devices, so that nothing of those can end it or make it grow.
"""

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from jobqueue.errors import InvalidSetting
from workers.attempt.node_folder import open_node_folder
from workers.file_locks import lock
from workers.node.keeping import EX_UNAVAILABLE, Command, SlotWorker, keep
from workers.node.plain_lines import PlainLines

log = logging.getLogger(__name__)

# What concerns one process, and not each of those that this one starts.
_NOT_FOR_WORKERS: Final = ("--pidfile", "--uid", "--gid", "--workdir")
_DEVICE_VARIABLES: Final = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What one machine serves.

    Attributes:
        state_dir: of its workers.
        log_format: `text` or `json`.
        slots: how many places each has; a slot with a device is written with its UUID.
        pidfile: where this process's id is written; empty: nowhere.
    """

    state_dir: str
    log_format: str
    slots: Mapping[str, int]
    pidfile: str = ""


def become(serving: Serving, words: Sequence[str]) -> None:
    """Turn this process into the server of a machine; does not return.

    Args:
        serving: what it serves.
        words: those after `celery` that this process was started with.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    program = [sys.executable, "-m", "workers.node.serve", json.dumps(asdict(serving)), *words]
    os.execv(sys.executable, program)  # noqa: S606 - our own program


def make_commands(serving: Serving, words: Sequence[str], environ: Mapping[str, str]) -> list[Command]:
    """Return how each slot's worker is started: as this machine's was, with its slot, its name and its places."""
    kept = _leave_out(words)
    commands = []
    for slot, places in serving.slots.items():
        name, _, uuid = slot.partition("=")
        own = ["--slot", slot, "--hostname", f"{name}@%h", "--concurrency", str(places)]
        device = dict.fromkeys(_DEVICE_VARIABLES, uuid) if uuid else {}
        program = [sys.executable, "-m", "celery", *kept, *own]
        commands.append(Command(slot=name, words=program, environ={**environ, **device}))
    return commands


def _leave_out(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    is_value = False
    for word in words:
        name, is_joined, _ = word.partition("=")
        if is_value or name in _NOT_FOR_WORKERS:
            is_value = not is_value and not is_joined
            continue
        kept.append(word)
    return kept


def main() -> int:
    """Serve one machine; where another server does already, say so and end."""
    serving = Serving(**json.loads(sys.argv[1]))
    _log_as(serving.log_format)
    try:
        node = open_node_folder(Path(serving.state_dir))
    except InvalidSetting as error:
        return _refuse(error)
    held = lock(node.root / "server")
    if held is None:
        told = f"a server of this machine ({socket.gethostname()}) is there already, with {serving.state_dir}"
        return _refuse(InvalidSetting(told, hint="stop that one first, or give this one another JOBQUEUE_STATE_DIR"))
    log.info("node.serving", extra={"slots": ",".join(serving.slots), "node": node.node_id})
    if serving.pidfile:
        Path(serving.pidfile).write_text(f"{os.getpid()}\n", encoding="ascii")
    try:
        return keep([SlotWorker(command) for command in make_commands(serving, sys.argv[2:], os.environ)])
    finally:
        log.info("node.ended", extra={"node": node.node_id})
        with suppress(OSError):
            if serving.pidfile:
                Path(serving.pidfile).unlink()


def _refuse(error: InvalidSetting) -> int:
    sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
    return EX_UNAVAILABLE


def _log_as(form: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(PlainLines(form))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
