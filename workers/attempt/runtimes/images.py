"""Images of an engine: found, or pulled, and pinned to what they are now."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from jobqueue.errors import ImagePullFailed, ImageRefused, RuntimeFailure
from workers.attempt.runtimes.engine import Engine, Gone

_log = logging.getLogger(__name__)

FRESH = timedelta(seconds=60)
PULL_TIMEOUT = timedelta(minutes=30)

_PULLS = 3
_PAUSE_SECONDS = 1.0
_HINT = "check the name and the tag, and that this node may pull it"
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


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image on the engine: what to start it by, and the volumes that it declares."""

    pinned: str
    volumes: tuple[str, ...] = ()


class Images:
    """The images of one engine; what was found is remembered for a short while, so that a warm start asks nothing.

    Args:
        fresh: how long that is; a tag that moves is noticed after it.
        pull_timeout: for one image, all tries together.
        pause: called with seconds between two tries.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        fresh: timedelta = FRESH,
        pull_timeout: timedelta = PULL_TIMEOUT,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engine = engine
        self._fresh = fresh
        self._pull_timeout = pull_timeout
        self._pause = pause
        self._found: dict[str, tuple[float, Image]] = {}
        self._lock = Lock()

    def resolve(self, name: str) -> Image:
        """Return the image of that name, tag, digest or id, pulled when the engine lacks it.

        Raises:
            ImageRefused, ImagePullFailed, RuntimeFailure: as `ContainerRuntime.resolve`.
        """
        if not name.strip():
            raise ImageRefused("the image has no name", hint=_HINT)
        with self._lock:
            found_at, image = self._found.get(name, (0.0, None))
        if image is not None and time.monotonic() - found_at < self._fresh.total_seconds():
            return image
        try:
            image = self._inspect(name)
        except Gone:
            self._pull(name)
            image = self._inspect(name)
        with self._lock:
            self._found[name] = self._found[image.pinned] = (time.monotonic(), image)
        return image

    def forget(self) -> None:
        """Ask the engine anew: an image was not there any more."""
        with self._lock:
            self._found.clear()

    def _inspect(self, name: str) -> Image:
        try:
            with self._engine.client(f"look at the image {name}") as client:
                return pin(name, client.inspect_image(name))  # type: ignore[no-untyped-call]
        except Gone:
            raise
        except RuntimeFailure as failure:
            raise classify(name, str(failure)) if _is_refusal(str(failure)) else failure from failure

    def _pull(self, name: str) -> None:
        deadline = time.monotonic() + self._pull_timeout.total_seconds()
        for left in reversed(range(_PULLS)):
            _log.info("image.pull", extra={"image": name})
            failure = self._pull_once(name, deadline - time.monotonic())
            if failure is None:
                return
            error = classify(name, failure)
            if isinstance(error, ImageRefused) or left == 0 or time.monotonic() > deadline:
                raise error
            _log.warning("image.pull_failed", extra={"image": name, "tries_left": left})
            self._pause(_PAUSE_SECONDS * (_PULLS - left))

    def _pull_once(self, name: str, seconds: float) -> str | None:
        """Return what went wrong; in a thread, because the engine is as silent as the registry of images is."""
        answers: SimpleQueue[str | RuntimeFailure | None] = SimpleQueue()
        Thread(target=self._ask, args=(name, answers), name="image-pull", daemon=True).start()
        try:
            answer = answers.get(timeout=max(0.0, seconds))
        except Empty:
            return f"not done within {self._pull_timeout.total_seconds():g} s"
        if isinstance(answer, RuntimeFailure):
            raise answer
        return answer

    def _ask(self, name: str, answers: "SimpleQueue[str | RuntimeFailure | None]") -> None:
        from docker.utils import parse_repository_tag

        repository, tag = parse_repository_tag(name)
        try:
            with self._engine.client(f"pull {name}") as client:
                answers.put(_find_error(client.pull(repository, tag=tag or "latest", stream=True, decode=True)))
        except Gone as failure:
            answers.put(failure.message)
        except RuntimeFailure as failure:
            answers.put(failure if failure.hint else failure.message)


def pin(name: str, seen: Mapping[str, Any]) -> Image:
    """Return the image that the engine showed under `name`: by the digest of its repository, else by its own id."""
    repository = name.partition("@")[0]
    if ":" in repository.rpartition("/")[2]:
        repository = repository.rpartition(":")[0]
    digests = [digest for digest in seen.get("RepoDigests") or () if digest.partition("@")[0] == repository]
    volumes = (seen.get("Config") or {}).get("Volumes") or {}
    return Image(pinned=digests[0] if digests else str(seen["Id"]), volumes=tuple(sorted(volumes)))


def _find_error(progress: Iterable[Mapping[str, Any]]) -> str | None:
    return next((str(step["error"]) for step in progress if "error" in step), None)


def classify(name: str, failure: str) -> RuntimeFailure:
    """Return the error that the engine's words about a pull mean: whether trying again can help."""
    if _is_refusal(failure):
        return ImageRefused(f"there is no image {name} for this node: {failure}", hint=_HINT)
    return ImagePullFailed(
        f"the image {name} could not be pulled: {failure}", hint="later it may be; it is tried again"
    )


def _is_refusal(failure: str) -> bool:
    words = failure.lower()
    return any(refusal in words for refusal in _REFUSALS) and "no such host" not in words
