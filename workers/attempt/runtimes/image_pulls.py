"""Pulls of images: tried again where that can help, given up in time, and not begun on a disk that is full."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

from jobqueue.errors import DiskFull, ImagePullFailed, ImageRefused, RuntimeFailure
from jobqueue.quantities import describe_size
from workers.attempt.holds import free_bytes
from workers.attempt.runtimes.engine import Engine, Gone, is_disk_full

_log = logging.getLogger(__name__)

HINT: Final = "check the name and the tag, and that this node may pull it"

_PULLS = 3
_PAUSE_SECONDS = 1.0
_LOCAL = "unix://"
# What follows is the page of whoever answered under the name of a registry, which a sender may choose: the engine asks
# anybody that it reaches, also the machine itself.
_PAGE = re.compile(r"(?<=response body).*", re.DOTALL)
# The engine answers with one status for all that goes wrong at a pull: only its words tell them apart.
_REFUSALS = (
    "manifest unknown",
    "not found",
    "no such image",
    "does not exist",
    "access denied",
    "access forbidden",
    "denied:",
    "unauthorized",
    "no basic auth credentials",
    "invalid reference format",
    "invalid repository name",
    "invalid tag format",
    "must be lowercase",
    "no matching manifest",
    "unsupported manifest",
    "is not supported",
)


class Pulls:
    """The pulls of one engine; any thread may pull.

    Args:
        engine: which.
        pull_timeout: for one image, all tries together.
        pause: called with seconds between two tries.
        floor_bytes: so much is to be free on the engine's disk before one begins.
        make_room: removes images that nobody needs, of so many bytes together; tells whether it removed any.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        pull_timeout: timedelta,
        pause: Callable[[float], None],
        floor_bytes: int = 0,
        make_room: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._engine, self._pull_timeout, self._pause = engine, pull_timeout, pause
        self._floor_bytes, self._make_room = floor_bytes, make_room

    def pull(self, name: str) -> None:
        """Pull an image.

        Raises:
            ImageRefused: there is no such image.
            DiskFull: the engine's disk has no room for it.
            ImagePullFailed: it could not be fetched now.
            RuntimeFailure: the engine does not answer.
        """
        deadline = time.monotonic() + self._pull_timeout.total_seconds()
        disk = self._find_disk()
        self._require_floor(disk)
        left = _PULLS
        while True:
            _log.info("image.pull", extra={"image": name})
            failure = self._pull_once(name, deadline - time.monotonic(), _Room(disk))
            if failure is None:
                return
            error = failure if isinstance(failure, RuntimeFailure) else classify(name, failure)
            if isinstance(error, DiskFull) and self._make_room(1):
                continue
            left -= 1
            if type(error) is not ImagePullFailed or left == 0 or time.monotonic() > deadline:
                raise error
            _log.warning("image.pull_failed", extra={"image": name, "tries_left": left})
            self._pause(_PAUSE_SECONDS * (_PULLS - left))

    def _find_disk(self) -> Path | None:
        with self._engine.client("describe itself") as client:
            return find_disk(self._engine.address, str(client.info().get("DockerRootDir") or ""))

    def _require_floor(self, disk: Path | None) -> None:
        if disk is None:
            return
        missing_bytes = self._floor_bytes - free_bytes(disk)
        if missing_bytes > 0 and not (self._make_room(missing_bytes) and free_bytes(disk) >= self._floor_bytes):
            raise DiskFull(
                f"{describe_size(free_bytes(disk))} are free in {disk}, where images go, "
                f"and {describe_size(self._floor_bytes)} are to be"
            )

    def _pull_once(self, name: str, seconds: float, room: "_Room") -> str | RuntimeFailure | None:
        """Return what went wrong; in a thread, because the engine is as silent as the registry of images is."""
        answers: SimpleQueue[str | RuntimeFailure | None] = SimpleQueue()
        Thread(target=self._ask, args=(name, room, answers), name="image-pull", daemon=True).start()
        try:
            return answers.get(timeout=max(0.0, seconds))
        except Empty:
            room.is_given_up = True
            return f"not done within {self._pull_timeout.total_seconds():g} s"

    def _ask(self, name: str, room: "_Room", answers: "SimpleQueue[str | RuntimeFailure | None]") -> None:
        from docker.utils import parse_repository_tag

        repository, tag = parse_repository_tag(name)
        try:
            with self._engine.client(f"pull {name}") as client:
                steps = client.pull(repository, tag=tag or "latest", stream=True, decode=True)
                with closing(steps):  # the engine gives a pull up whose caller has hung up
                    answers.put(_find_error(steps, room))
        except Gone as failure:
            answers.put(failure.message)
        except RuntimeFailure as failure:
            answers.put(failure if failure.hint else failure.message)


class _Room:
    """What is still to come of an image, layer by layer as the registry tells the engine, and what is free for it.

    Attributes:
        is_given_up: whether nobody waits for it any more; the next step of the pull is then the last one.
    """

    def __init__(self, disk: Path | None) -> None:
        self._disk = disk
        self.is_given_up = False
        self._left: dict[str, int] = {}

    def look(self, step: Mapping[str, Any]) -> None:
        """Learn from one step of a pull.

        Raises:
            DiskFull: what is known to come is more than fits.
        """
        layer, detail = str(step.get("id")), step.get("progressDetail") or {}
        if step.get("status") != "Downloading" or not detail.get("total"):
            self._left.pop(layer, None)
            return
        is_news = layer not in self._left
        self._left[layer] = int(detail["total"]) - int(detail.get("current", 0))
        if self._disk and is_news and sum(self._left.values()) > free_bytes(self._disk):
            raise DiskFull(
                f"{describe_size(sum(self._left.values()))} of the image are still to come, packed, "
                f"and {describe_size(free_bytes(self._disk))} are free in {self._disk}"
            )


def _find_error(progress: Iterable[Mapping[str, Any]], room: _Room) -> str | None:
    for step in progress:
        if "error" in step:
            return str(step["error"])
        if room.is_given_up:
            return "nobody waits for it"
        room.look(step)
    return None


def find_disk(address: str, folder: str) -> Path | None:
    """Return the folder of an engine's images; None where it is not this machine's, or not to be seen."""
    if not address.startswith(_LOCAL) or not folder:
        return None
    try:
        free_bytes(Path(folder))
    except OSError:
        return None
    return Path(folder)


def classify(name: str, failure: str) -> RuntimeFailure:
    """Return the error that the engine's words about a pull mean: whether trying again can help."""
    failure = _PAGE.sub("", failure)
    if is_disk_full(failure):
        return DiskFull(f"the image {name} could not be pulled: {failure}")
    if is_refusal(failure):
        return ImageRefused(f"there is no image {name} for this node: {failure}", hint=HINT)
    return ImagePullFailed(
        f"the image {name} could not be pulled: {failure}", hint="later it may be; it is tried again"
    )


def is_refusal(failure: str) -> bool:
    """Tell whether the engine's words mean that the image cannot be had."""
    words = failure.lower()
    return any(refusal in words for refusal in _REFUSALS) and "no such host" not in words
