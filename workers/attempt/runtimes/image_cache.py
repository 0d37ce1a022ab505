"""What a node knows of the images that its workers have pulled: which they are, and when each was used last.

A file for each image (`workers.attempt.holds`) says under which names it was pulled and how large it is. An attempt
holds its image from before the container is made. What has no such file was not pulled by this node and is never
removed. While an image is pulled, a locked file says so to the other workers; one that is not locked is what a killed
worker has left of a pull, and says what the engine had before.
"""

import json
import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from workers.attempt.holds import Kept, hold, look, touch
from workers.file_locks import is_locked, locked, try_lock

log = logging.getLogger(__name__)

_IMAGE: Final = "image-"
_NEW: Final = "new-"


@dataclass(frozen=True, kw_only=True)
class Pull:
    """A pull by this process, or one that a killed process has begun.

    Attributes:
        name: of the image.
        known: the names of all images that the engine had before.
        path: of the file that says so.
        handle: its number; while it is open nobody else pulls the image.
    """

    name: str
    known: frozenset[str]
    path: Path
    handle: int

    def end(self) -> None:
        """Take it for done; the lock of the cache is held."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others pull the image."""
        os.close(self.handle)


@dataclass(frozen=True, kw_only=True)
class ImageCache:
    """The files of one engine's images, which every worker of the machine shares.

    Attributes:
        folder: on the file system of the attempts' folders; made if need be.
        size_bytes: of all images that the node has pulled, by the sizes that the engine tells; 0: all are kept.
        floor_bytes: so much is to be free on the engine's disk before anything is pulled.
    """

    folder: Path
    size_bytes: int = 0
    floor_bytes: int = 0

    def locked(self) -> AbstractContextManager[None]:
        """Let nobody else hold, note or forget an image for the moment.

        Raises:
            RuntimeFailure: another worker has the lock for far too long.
        """
        self._pulls.mkdir(mode=0o700, parents=True, exist_ok=True)
        return locked(self.folder / "images.lock")

    def list(self) -> list[Kept]:
        """Return the images that this node has pulled, by their ids; the lock is held."""
        paths = sorted(self.folder.glob(f"{_IMAGE}*"))
        return [look(path, size_bytes=_read(path)[1], name=path.name.removeprefix(_IMAGE)) for path in paths]

    def names(self, image_id: str) -> frozenset[str]:
        """Return the names that this node has pulled an image under; none where it has not pulled it."""
        return _read(self._path(image_id))[0]

    def note(self, image_id: str, *, names: Collection[str], size_bytes: int) -> None:
        """Note that an image was pulled; the lock is held.

        Raises:
            OSError: the disk does not take it.
        """
        path = self._path(image_id)
        all_names = sorted({*names, *_read(path)[0]})
        content = json.dumps({"names": all_names, "size_bytes": size_bytes}).encode()
        if path.exists():
            path.write_bytes(content)  # in place: it may be held
        else:
            new = path.with_name(f"{_NEW}{path.name}")
            new.write_bytes(content)
            new.rename(path)

    def use(self, image_id: str, link: Path | None) -> bool:
        """Note a use, and hold the image until `link` is removed; False when this node has not pulled it.

        The lock is held. Where the folder of `link` is gone nobody waits for the image any more.
        """
        path = self._path(image_id)
        try:
            touch(path)
        except FileNotFoundError:
            return False
        if link:
            with suppress(FileNotFoundError):
                hold(path, link)
        return True

    def forget(self, image_id: str) -> None:
        """Take an image for one that this node has not pulled; the lock is held."""
        self._path(image_id).unlink(missing_ok=True)

    def begin_pull(self, name: str, list_known: Callable[[], frozenset[str]]) -> Pull | None:
        """Return a pull of an image; None while another worker pulls it. The lock is held.

        Args:
            name: of the image.
            list_known: called where nobody pulls it, for the names of all images that the engine has.

        Raises:
            OSError: the disk does not take it. And what `list_known` raises.
        """
        path = self._find_pull(name)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with ExitStack() as undone:  # else nobody could pull the image for as long as this process is there
            undone.callback(os.close, handle)
            if not try_lock(handle):
                return None
            # What is known of an earlier one is still to be looked at.
            pull = _read_pull(path, handle) if os.fstat(handle).st_size else None
            if pull is None:
                known = list_known()
                os.pwrite(handle, json.dumps({"name": name, "known": sorted(known)}).encode(), 0)
                pull = Pull(name=name, known=known, path=path, handle=handle)
            undone.pop_all()
        return pull

    def is_pulled(self, name: str) -> bool:
        """Tell whether a worker pulls an image now; takes no lock."""
        return is_locked(self._find_pull(name))

    def left_pulls(self) -> Iterator[Pull]:
        """Return the pulls that killed workers have begun; the lock is held."""
        for path in sorted(self._pulls.iterdir()):
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if try_lock(handle):
                yield _read_pull(path, handle) or Pull(name="", known=frozenset(), path=path, handle=handle)
            else:
                os.close(handle)

    @property
    def _pulls(self) -> Path:
        return self.folder / "pulls"

    def _find_pull(self, name: str) -> Path:
        return self._pulls / sha256(name.encode()).hexdigest()

    def _path(self, image_id: str) -> Path:
        return self.folder / f"{_IMAGE}{image_id}"


def _read(path: Path) -> tuple[frozenset[str], int]:
    try:
        said: dict[str, Any] = json.loads(path.read_bytes())
        return frozenset(said["names"]), int(said["size_bytes"])
    except FileNotFoundError:
        return frozenset(), 0
    except (ValueError, KeyError, TypeError) as error:  # then its image is nobody's to remove
        log.warning("image.note_unreadable", extra={"file": path.name, "error": str(error)})
        return frozenset(), 0


def _read_pull(path: Path, handle: int) -> Pull | None:
    try:
        said = json.loads(path.read_bytes())
        return Pull(name=said["name"], known=frozenset(said["known"]), path=path, handle=handle)
    except (ValueError, KeyError, TypeError):
        return None
