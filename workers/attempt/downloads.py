"""Artifacts on this node: fetched once, checked while they arrive, kept under their digest."""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from jobqueue.artifacts import Artifact
from jobqueue.errors import ArtifactRefused
from jobqueue.quantities import describe_size
from jobqueue.storage.base import Store
from workers.attempt.archive import unpack
from workers.attempt.trees import remove

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an artifact is read, how much of it there may be, and whether to go on.

    Attributes:
        check: called before each piece; what it raises ends the reading, of which nothing is left then.
    """

    artifact: Artifact
    store: Store
    key: str
    max_bytes: int
    check: Callable[[], object] = lambda: None


def fetch_file(source: Source, cache: Path) -> Path:
    """Return the artifact as a file in the cache that nobody may write to.

    Raises:
        NotFound: the store does not have it.
        ArtifactRefused: it is not what was declared, or is too large.
        StoreUnavailable: the store does not answer.
        OSError: the node's disk does not take it.
    """
    _require_fit(source)
    known = _kept(cache / "artifacts", source.artifact.sha256)
    if known:
        return known
    with _incoming(cache) as folder:
        arriving = folder / "artifact"
        digest = _download(source, arriving)
        return _keep(arriving, cache / "artifacts" / digest)


def fetch_tree(source: Source, cache: Path) -> Path:
    """Return the artifact unpacked, as a folder in the cache; errors as for `fetch_file`."""
    _require_fit(source)
    known = _kept(cache / "trees", source.artifact.sha256)
    if known:
        return known
    with _incoming(cache) as folder:
        arriving, tree = folder / "artifact", folder / "tree"
        digest = _download(source, arriving)
        tree.mkdir()
        tree.chmod(0o755)
        declared = source.artifact.unpacked_bytes
        unpack(
            arriving,
            tree,
            max_bytes=source.max_bytes,
            declared_bytes=declared,
            is_read_only=True,
            check=source.check,
        )
        # A file that is empty after a power cut would be taken for the real one ever after.
        os.sync()
        return _keep(tree, cache / "trees" / digest)


def _require_fit(source: Source) -> None:
    if max(source.artifact.size_bytes, source.artifact.unpacked_bytes) > source.max_bytes:
        _refuse_size(source.artifact, source.max_bytes)


def _kept(folder: Path, digest: str) -> Path | None:
    if not digest:
        return None
    if not _DIGEST.fullmatch(digest):
        raise ArtifactRefused(f"not a sha256: {digest[:80]!r}", hint="submit it again")
    path = folder / digest
    try:
        os.utime(path)  # it was used just now
    except FileNotFoundError:
        return None
    return path


def _keep(path: Path, target: Path) -> Path:
    """Give what arrived its name; if another slot was faster, that one's stays."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        path.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    return target


@contextmanager
def _incoming(cache: Path) -> Iterator[Path]:
    parent = cache / "incoming"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        remove(folder)


def _download(source: Source, path: Path) -> str:
    """Write the artifact to `path` and return its digest."""
    artifact = source.artifact
    limit = min(source.max_bytes, artifact.size_bytes or source.max_bytes)
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("xb") as file:
        for piece in source.store.get(source.key):
            source.check()
            size_bytes += len(piece)
            if size_bytes > limit:
                _refuse_size(artifact, limit)
            digest.update(piece)
            file.write(piece)
        _settle(file)
    if artifact.size_bytes and size_bytes != artifact.size_bytes:
        raise ArtifactRefused(
            f"it has {size_bytes} bytes in the store, not {artifact.size_bytes} as declared", hint="upload it again"
        )
    if artifact.sha256 and digest.hexdigest() != artifact.sha256:
        raise ArtifactRefused("its content in the store is not what was submitted (sha256)", hint="upload it again")
    return digest.hexdigest()


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fchmod(file.fileno(), 0o444)
    os.fsync(file.fileno())


def _refuse_size(artifact: Artifact, limit: int) -> None:
    if artifact.size_bytes == limit:
        raise ArtifactRefused(f"it has more than the declared {limit} bytes in the store", hint="upload it again")
    raise ArtifactRefused(f"it does not fit in {describe_size(limit)}", hint="ask for more with disk=")
