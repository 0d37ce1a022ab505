"""Images of an engine: found, or pulled, pinned to what they are now, and removed when they are too many."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any, Final

from jobqueue.errors import ImagePullFailed, ImageRefused, RuntimeFailure
from jobqueue.quantities import describe_size
from workers.attempt.holds import choose
from workers.attempt.runtimes.engine import Engine, Gone
from workers.attempt.runtimes.image_cache import ImageCache, Pull
from workers.attempt.runtimes.image_pulls import HINT, Pulls, classify, is_refusal

_log = logging.getLogger(__name__)

FRESH = timedelta(seconds=60)
PULL_TIMEOUT = timedelta(minutes=30)

_POLL_SECONDS: Final = 0.2
_NAMELESS: Final = "<none>"


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image on the engine.

    Attributes:
        pinned: what to start it by.
        volumes: those that it declares.
        identity: the engine's own id, without the kind of digest.
        names: all tags and digests that the engine knows it by.
        size_bytes: unpacked, with layers that it shares with others.
        is_pulled: whether this node has pulled it.
    """

    pinned: str
    volumes: tuple[str, ...] = ()
    identity: str = ""
    names: frozenset[str] = frozenset()
    size_bytes: int = 0
    is_pulled: bool = False


class Images:
    """The images of one engine; what was found is remembered for a short while, so that a warm start asks nothing.

    Args:
        engine: which.
        cache: what this node knows of those that it pulled; without it all are kept, and none is held.
        fresh: how long an image is remembered; a tag that moves is noticed after it.
        pull_timeout: for one image, all tries together.
        pause: called with seconds between two tries.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        cache: ImageCache | None = None,
        fresh: timedelta = FRESH,
        pull_timeout: timedelta = PULL_TIMEOUT,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._fresh = fresh
        self._pull_timeout = pull_timeout
        self._pulls = Pulls(
            engine,
            pull_timeout=pull_timeout,
            pause=pause,
            floor_bytes=cache.floor_bytes if cache else 0,
            make_room=self._let_go,
        )
        self._found: dict[str, tuple[float, Image]] = {}
        self._lock = Lock()

    def resolve(self, name: str, link: Path | None = None) -> Image:
        """Return the image of that name, tag, digest or id, pulled when the engine lacks it.

        Args:
            name: which.
            link: a file to be made; this node does not remove the image before that is removed.

        Raises:
            ImageRefused, ImagePullFailed, DiskFull, RuntimeFailure: as `ContainerRuntime.resolve`.
        """
        if not name.strip():
            raise ImageRefused("the image has no name", hint=HINT)
        image = self._remember(name)
        if image is None or not self._use(image, link):
            image = self._find(self._cache, name, link) if self._cache else self._find_anyhow(name)
            with self._lock:
                self._found[name] = self._found[image.pinned] = (time.monotonic(), image)
        return image

    def look(self, pinned: str) -> Image:
        """Return an image that an attempt holds since `resolve`; it is not pulled, and nobody is waited for.

        Raises:
            Gone, RuntimeFailure: somebody else has removed it, or the engine does not answer.
        """
        return self._remember(pinned) or self._inspect(pinned)

    def forget(self) -> None:
        """Ask the engine anew: an image was not there any more."""
        with self._lock:
            self._found.clear()

    def tidy(self) -> str:
        """Note what is in use, claim what killed workers have pulled, remove what is over the bound.

        Returns:
            What this node keeps, in words.

        Raises:
            RuntimeFailure: the engine does not answer.
        """
        cache = self._cache
        if cache is None:
            return ""
        with cache.locked():
            for pull in cache.left_pulls():
                with closing(pull):
                    if pull.name:
                        with suppress(Gone, ImageRefused):
                            self._claim(cache, pull, None)
                    pull.end()
            used = self._find_used()
            for each in cache.list():
                if each.is_held or each.name in used:
                    cache.use(each.name, None)
        self._let_go()
        with cache.locked():
            kept = cache.list()
        bound = f" of {describe_size(cache.size_bytes)}" if cache.size_bytes else ""
        return f"{len(kept)} images pulled here, {describe_size(sum(each.size_bytes for each in kept))}{bound}"

    def _remember(self, name: str) -> Image | None:
        with self._lock:
            found_at, image = self._found.get(name, (0.0, None))
        return image if time.monotonic() - found_at < self._fresh.total_seconds() else None

    def _use(self, image: Image, link: Path | None) -> bool:
        """Note a use; False when another worker may have removed it since it was found."""
        if self._cache is None:
            return True
        with self._cache.locked():
            return self._cache.use(image.identity, link) or not image.is_pulled

    def _find_anyhow(self, name: str) -> Image:
        with suppress(Gone):
            return self._inspect(name)
        self._pulls.pull(name)
        return self._inspect(name)

    def _find(self, cache: ImageCache, name: str, link: Path | None) -> Image:
        """Return the image, pulled by whichever worker of this node was first."""
        deadline = time.monotonic() + self._pull_timeout.total_seconds()
        while True:
            with cache.locked():
                with suppress(Gone):
                    image = self._inspect(name)
                    return replace(image, is_pulled=cache.use(image.identity, link))
                pull = cache.begin_pull(name, self._list_names)
            if pull:
                return self._pull(cache, pull, link)
            while cache.is_pulled(name):  # without a word to the engine, and without the lock
                if time.monotonic() > deadline:
                    seconds = self._pull_timeout.total_seconds()
                    raise ImagePullFailed(
                        f"another worker of this node has not pulled {name} within {seconds:g} s",
                        hint="later it may be; it is tried again",
                    )
                time.sleep(_POLL_SECONDS)

    def _pull(self, cache: ImageCache, pull: Pull, link: Path | None) -> Image:
        """Pull and claim it; what could not be claimed, or still arrives, is left for `tidy` to claim."""
        with closing(pull):
            try:
                self._pulls.pull(pull.name)
            except ImageRefused:
                with cache.locked():
                    pull.end()
                raise
            with cache.locked():
                image = self._claim(cache, pull, link)
                pull.end()
        try:
            self._let_go(but=image.identity)
        except RuntimeFailure as error:
            _log.warning("images.not_tidied", extra={"error": error.message})
        return image

    def _claim(self, cache: ImageCache, pull: Pull, link: Path | None) -> Image:
        """Note which names of an image are there because this node has pulled it; the lock is held."""
        image = self._inspect(pull.name)
        names = image.names - pull.known
        if names:
            cache.note(image.identity, names=names, size_bytes=image.size_bytes)
        return replace(image, is_pulled=cache.use(image.identity, link))

    def _let_go(self, missing_bytes: int = 0, *, but: str = "") -> bool:
        """Remove images that nobody needs, the least recently used first: what is over the bound, or so much.

        Args:
            missing_bytes: to be removed, if that can be.
            but: the id of one that stays.

        Returns:
            Whether any was removed.
        """
        cache = self._cache
        if cache is None or not cache.size_bytes:
            return False
        removed, passed = False, {but}
        while True:
            with cache.locked():
                needed = self._find_used() | passed
                kept = [replace(each, is_held=each.is_held or each.name in needed) for each in cache.list()]
                going = choose(kept, bound_bytes=cache.size_bytes, missing_bytes=missing_bytes)
                if not going:
                    return removed
                if self._remove(cache, going[0].name):
                    removed, missing_bytes = True, missing_bytes - going[0].size_bytes
                else:
                    passed.add(going[0].name)

    def _remove(self, cache: ImageCache, identity: str) -> bool:
        """Remove an image, if all of its names are this node's; the lock is held."""
        try:
            image = self._inspect(identity)
        except Gone:
            cache.forget(identity)
            return False
        if not image.names <= cache.names(identity):
            _log.info("image.of_others", extra={"image": identity})
            cache.forget(identity)
            return False
        try:
            # The tags first; with its last name an image goes by itself.
            for name in (*sorted(image.names, key=lambda name: "@" in name), identity):
                with suppress(Gone), self._engine.client(f"remove the image {name}") as client:
                    client.remove_image(name)
        except RuntimeFailure as error:
            _log.warning("image.not_removed", extra={"image": identity, "error": error.message})
            return False
        cache.forget(identity)
        self.forget()
        _log.info("image.let_go", extra={"image": identity, "bytes": image.size_bytes})
        return True

    def _inspect(self, name: str) -> Image:
        try:
            with self._engine.client(f"look at the image {name}") as client:
                return pin(name, client.inspect_image(name))  # type: ignore[no-untyped-call]
        except Gone:
            raise
        except RuntimeFailure as failure:
            raise classify(name, str(failure)) if is_refusal(str(failure)) else failure from failure

    def _list_names(self) -> frozenset[str]:
        with self._engine.client("list images") as client:
            return frozenset(name for seen in client.images() for name in _names(seen))

    def _find_used(self) -> set[str]:
        """Return the ids of the images that any container on the engine was made of, whoever made it."""
        with self._engine.client("list containers") as client:
            return {_strip(str(seen["ImageID"])) for seen in client.containers(all=True)}


def pin(name: str, seen: Mapping[str, Any]) -> Image:
    """Return the image that the engine showed under `name`: by the digest of its repository, else by its own id."""
    repository = name.partition("@")[0]
    if ":" in repository.rpartition("/")[2]:
        repository = repository.rpartition(":")[0]
    digests = [digest for digest in seen.get("RepoDigests") or () if digest.partition("@")[0] == repository]
    volumes = (seen.get("Config") or {}).get("Volumes") or {}
    return Image(
        pinned=digests[0] if digests else str(seen["Id"]),
        volumes=tuple(sorted(volumes)),
        identity=_strip(str(seen["Id"])),
        names=frozenset(_names(seen)),
        size_bytes=int(seen.get("Size") or 0),
    )


def _names(seen: Mapping[str, Any]) -> list[str]:
    names = [*(seen.get("RepoTags") or ()), *(seen.get("RepoDigests") or ())]
    return [name for name in names if _NAMELESS not in name]


def _strip(identity: str) -> str:
    return identity.removeprefix("sha256:")
