"""What containers say of themselves, read where the engine keeps it, past the product and past the engine's own API.

The engine's files stay readable while the engine is away, and an open one outlives the removal of its container.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Final

from faults.history import clock_seconds

_POLL_SECONDS: Final = 0.15
_LABEL: Final = "jobqueue."
NODE_PREFIX: Final = "node-"


@dataclass(kw_only=True)
class Witness:
    """One container, as it showed itself.

    Attributes:
        began: when it was first seen.
        ticks: each time at which it said that it lives.
        said: what else it printed.
    """

    container: str
    experiment: str
    attempt: int
    token: int
    node: str
    began: float
    ticks: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    file: BufferedReader = field(repr=False)
    rest: bytes = b""

    @property
    def is_live(self) -> bool:
        """Tell whether it has ticked within the last second."""
        return bool(self.ticks) and clock_seconds() - self.ticks[-1] < 1

    def read(self) -> None:
        """Read what is new."""
        *lines, self.rest = (self.rest + self.file.read()).split(b"\n")
        for line in lines:
            with suppress(ValueError, KeyError):
                self._note(str(json.loads(line)["log"]).strip())

    def _note(self, text: str) -> None:
        word, _, number = text.partition(" ")
        if word == "tick":
            self.ticks.append(float(number))
        elif len(self.said) < 20:
            self.said.append(text[:200])


class Watcher:
    """Reads every container's output, on a thread of its own.

    Args:
        folder: `containers` in the engine's data.
        on_begin: called once for each container, on that thread, when it first ticks.
    """

    def __init__(self, folder: Path, *, on_begin: Callable[[Witness], None]) -> None:
        self._folder = folder
        self._on_begin = on_begin
        self._closed = threading.Event()
        self._known: dict[str, Witness] = {}
        self._thread = threading.Thread(target=self._run, name="ticks", daemon=True)
        self._thread.start()

    @property
    def witnesses(self) -> list[Witness]:
        """Every container that was seen so far."""
        return list(self._known.values())

    def live(self, *, node: str = "") -> list[Witness]:
        """Return the containers that live now, of one node or of all."""
        return [each for each in self.witnesses if each.is_live and node in ("", each.node)]

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        self._thread.join()
        for witness in self.witnesses:
            witness.file.close()

    def _run(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            for witness in self._new():
                self._known[witness.container] = witness
            for witness in self.witnesses:
                was_silent = not witness.ticks
                witness.read()
                if was_silent and witness.ticks:
                    self._on_begin(witness)

    def _new(self) -> Iterator[Witness]:
        for folder in self._folder.glob("*"):
            if folder.name not in self._known:
                with suppress(OSError, ValueError, KeyError):
                    yield _open(folder)


def _node_of(mounts: Mapping[str, Mapping[str, str]]) -> str:
    """Return the node whose folder is mounted: `node-1`, as the run's folders are called."""
    parts = (part for mount in mounts.values() for part in Path(mount["Source"]).parts)
    return next((part for part in parts if part.startswith(NODE_PREFIX)), "")


def _open(folder: Path) -> Witness:
    config = json.loads((folder / "config.v2.json").read_text())
    labels = config["Config"]["Labels"]
    return Witness(
        container=folder.name,
        experiment=labels[f"{_LABEL}experiment"],
        attempt=int(labels[f"{_LABEL}attempt"]),
        token=int(labels[f"{_LABEL}token"]),
        node=_node_of(config["MountPoints"]),
        began=clock_seconds(),
        file=(folder / f"{folder.name}-json.log").open("rb"),
    )
