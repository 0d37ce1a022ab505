"""A node's own folder: who it is, whose workers are there, and where its lease files lie.

Every worker process of one machine that was started with the same state folder shares it, and nobody else does: a
state folder on a file server has one for each machine.
"""

import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jobqueue.errors import InvalidSetting
from jobqueue.ids import NodeId, WorkerId
from workers.file_locks import is_locked, lock


@dataclass(frozen=True, kw_only=True)
class NodeFolder:
    """The folder of one node.

    Attributes:
        root: the folder.
        node_id: what its containers are labelled with; no other machine and no other state folder has it.
    """

    root: Path
    node_id: NodeId

    @property
    def leases(self) -> Path:
        """Where its lease files lie."""
        return self.root / "leases"

    @property
    def devices(self) -> Path:
        """Where it is kept which of its devices are not fit."""
        return self.root / "devices"

    @property
    def guard(self) -> Path:
        """The file that its guard holds locked."""
        return self.root / "guard"

    def claim(self, worker_id: WorkerId) -> int:
        """Take a worker's name, until the number that is returned is closed or this process ends.

        Raises:
            InvalidSetting: a live worker has it.
        """
        handle = lock(self._workers / quote(worker_id, safe="@"))
        if handle is None:
            raise InvalidSetting(
                f"a worker named {worker_id} runs on this node already: their containers could not be told apart",
                hint="give each worker a name of its own, as in `-n left@%h`",
            )
        return handle

    def is_alive(self, worker_id: WorkerId) -> bool:
        """Tell whether a live worker has this name."""
        return is_locked(self._workers / quote(worker_id, safe="@"))

    def has_workers(self) -> bool:
        """Tell whether any worker is alive."""
        return any(is_locked(path) for path in self._workers.iterdir())

    @property
    def _workers(self) -> Path:
        return self.root / "workers"


def open_node_folder(state_dir: Path) -> NodeFolder:
    """Return this machine's folder within a state folder, made if need be.

    Raises:
        InvalidSetting: it cannot be made.
    """
    host = socket.gethostname()
    root = state_dir / "nodes" / quote(host, safe="")
    try:
        for folder in (root, root / "leases", root / "workers"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return NodeFolder(root=root, node_id=NodeId(f"{host}-{_read_id(root / 'id')}"))
    except OSError as error:
        raise InvalidSetting(f"no folder for this node: {error}", hint="check JOBQUEUE_STATE_DIR") from error


def _read_id(path: Path) -> str:
    with suppress(FileExistsError):
        new = path.with_name(f"id.{os.getpid()}")
        new.write_text(secrets.token_hex(4))
        try:
            os.link(new, path)
        finally:
            new.unlink()
    return path.read_text()
