"""Artifacts on this node: fetched once, checked while they arrive, kept under their digest."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from jobqueue.artifacts import Artifact
from jobqueue.errors import ArtifactRefused
from jobqueue.quantities import describe_size
from jobqueue.storage.base import Readable
from workers.attempt.archive import unpack
from workers.attempt.input_cache import CONTENT, InputCache, Wanted

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FILE: Final = "file"
_TREE: Final = "tree"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an artifact is read, how much of it there may be, and whether to go on.

    Attributes:
        check: called before each piece; what it raises ends the reading, of which nothing is left then.
    """

    artifact: Artifact
    store: Readable
    key: str
    max_bytes: int
    check: Callable[[], object] = lambda: None


def fetch_file(source: Source, cache: InputCache, place: Path) -> Path:
    """Return the artifact as a file of the node that nobody may write to; it stays until `place` is removed.

    Args:
        source: what.
        cache: where it is looked for and kept.
        place: a folder of the attempt's own, made if need be.

    Raises:
        NotFound: the store does not have it.
        ArtifactRefused: it is not what was declared, or is too large.
        StoreUnavailable: the store does not answer.
        DiskFull: there is no room for it.
        OSError: the node's disk does not take it.
    """
    _require_fit(source)

    def bring(folder: Path, pulse: Callable[[], None]) -> str:
        return _name(_download(_beating(source, pulse), folder / CONTENT), _FILE)

    return cache.get(_want(source, cache, _FILE, bring), place)


def fetch_tree(source: Source, cache: InputCache, place: Path) -> Path:
    """Return the artifact unpacked, as a folder of the node; arguments and errors as for `fetch_file`."""
    _require_fit(source)

    def bring(folder: Path, pulse: Callable[[], None]) -> str:
        beating, archive, tree = _beating(source, pulse), folder / "archive", folder / CONTENT
        digest = _download(beating, archive)
        tree.mkdir()
        tree.chmod(0o755)
        unpack(
            archive,
            tree,
            max_bytes=source.max_bytes,
            declared_bytes=source.artifact.unpacked_bytes,
            is_read_only=True,
            check=beating.check,
        )
        archive.unlink()
        # A file that is empty after a power cut would be taken for the real one ever after.
        os.sync()
        return _name(digest, _TREE)

    return cache.get(_want(source, cache, _TREE, bring), place)


def _want(source: Source, cache: InputCache, kind: str, bring: Callable[[Path, Callable[[], None]], str]) -> Wanted:
    artifact = source.artifact
    if artifact.sha256 and not _DIGEST.fullmatch(artifact.sha256):
        raise ArtifactRefused(f"not a sha256: {artifact.sha256[:80]!r}", hint="submit it again")
    # What will not be kept is nothing to wait for while another attempt brings it to itself.
    is_shared = artifact.sha256 and max(artifact.size_bytes, artifact.unpacked_bytes) <= cache.size_bytes
    return Wanted(
        name=_name(artifact.sha256, kind) if is_shared else "",
        expected_bytes=artifact.size_bytes + artifact.unpacked_bytes,
        bring=bring,
        check=source.check,
    )


def _name(digest: str, kind: str) -> str:
    return f"{digest}.{kind}"


def _beating(source: Source, pulse: Callable[[], None]) -> Source:
    def check() -> None:
        source.check()
        pulse()

    return replace(source, check=check)


def _require_fit(source: Source) -> None:
    if max(source.artifact.size_bytes, source.artifact.unpacked_bytes) > source.max_bytes:
        _refuse_size(source.artifact, source.max_bytes)


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
