"""The folder of one attempt: inputs brought in, outputs taken out, nothing left."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from jobqueue.artifacts import Artifact
from jobqueue.errors import ArtifactRefused, InvalidSpec, NotFound
from jobqueue.ids import parse_experiment_id
from jobqueue.registry.base import Lease
from jobqueue.spec import DEFAULT_OUTPUTS, ExperimentSpec
from jobqueue.storage import Allowed, locate
from jobqueue.storage.base import Store
from workers.attempt.archive import unpack
from workers.attempt.downloads import Source, fetch_file, fetch_tree
from workers.attempt.input_cache import InputCache
from workers.attempt.lease_files import name_of
from workers.attempt.outputs import stage_out
from workers.attempt.planning import PROGRESS_FILE
from workers.attempt.runtimes.hardening import run_as
from workers.attempt.trees import own, remove

__all__ = [
    "Staged",
    "attempt_folder",
    "list_attempts",
    "make_folder",
    "remove",
    "stage_in",
    "stage_out",
    "workspace_folder",
]

_log = logging.getLogger(__name__)

# Beside the workspace: what the attempt has of the node's caches.
_ARCHIVE: Final = "archive"
_INPUTS: Final = "inputs"
_IMAGE: Final = "image"


@dataclass(frozen=True, kw_only=True)
class Staged:
    """What a container is started with.

    Attributes:
        workspace: its working folder, which belongs to the user it runs as.
        inputs: file or folder by name, of the node's cache or, if too large for it, the attempt's own; to be shown
            read-only.
    """

    workspace: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)


def attempt_folder(root: Path, lease: Lease) -> Path:
    """Return where an attempt lies below the node's folder; its name tells whose it is."""
    return root / "attempts" / name_of(lease)


def list_attempts(root: Path, *, older_than: timedelta) -> list[Lease]:
    """Return whose folders lie below the node's folder, unchanged for so long; what is called otherwise is left out."""
    leases = []
    for folder in (root / "attempts").glob("*-*-*"):
        experiment_id, attempt, token = folder.name.rsplit("-", 2)
        with suppress(OSError, ValueError, InvalidSpec):
            if time.time() - folder.stat().st_mtime >= older_than.total_seconds():
                name = parse_experiment_id(experiment_id)
                leases.append(Lease(experiment_id=name, attempt=int(attempt), token=int(token)))
    return leases


def workspace_folder(folder: Path) -> Path:
    """Return where the container's working folder lies in an attempt's."""
    return folder / "workspace"


def make_folder(folder: Path) -> Path:
    """Make an attempt's folder; return the file in it that holds its image."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / _IMAGE


def stage_in(
    spec: ExperimentSpec,
    folder: Path,
    *,
    store: Store,
    cache: InputCache,
    allowed: Allowed | None = None,
    check: Callable[[], object] = lambda: None,
) -> Staged:
    """Make the attempt's folder anew, with its workspace unpacked and its inputs at hand.

    Args:
        spec: what it needs; all of it together may not be larger than `spec.disk`.
        folder: as `attempt_folder` says.
        store: the project's own.
        cache: the node's; what is needed of it is held until the folder is removed.
        allowed: what inputs may be read from beside the project's own store.
        check: called before each piece that is fetched or unpacked; what it raises ends it.

    Raises:
        NotFound: the workspace or an input is not in its store; the message says which.
        ArtifactRefused: it is not what was submitted, is too large, or is an archive that breaks a rule.
        StoreUnavailable: a store does not answer.
        DiskFull: the node has no room for it.
        OSError: the node's disk does not take it.
    """
    for part in (workspace_folder(folder), *(folder / name for name in (_ARCHIVE, _INPUTS))):
        remove(part)
    workspace = workspace_folder(folder)
    workspace.mkdir(parents=True)
    folder.chmod(0o700)
    workspace.chmod(0o755)
    inputs: dict[str, Path] = {}
    left = spec.disk

    def source(artifact: Artifact) -> Source:
        place, key = locate(artifact.uri, default=store, allowed=allowed)
        return Source(artifact=artifact, store=place, key=key, max_bytes=left, check=check)

    if spec.workspace is not None:
        with _named("the workspace"):
            archive = fetch_file(source(spec.workspace), cache, folder / _ARCHIVE)
            declared = spec.workspace.unpacked_bytes
            left -= unpack(archive, workspace, max_bytes=left, declared_bytes=declared, check=check)
        remove(folder / _ARCHIVE)
    for name, artifact in sorted(spec.inputs.items()):
        with _named(f"input {name!r}"):
            fetch = fetch_tree if artifact.is_tree else fetch_file
            inputs[name] = fetch(source(artifact), cache, folder / _INPUTS / name)
            left -= max(artifact.size_bytes, artifact.unpacked_bytes) or _weigh(inputs[name])
    _make_expected_folders(spec, workspace)
    if os.geteuid() == 0:
        uid, gid = run_as()
        own(workspace, uid=uid, gid=gid)
    _log.info("workspace.staged", extra={"folder": folder.name, "inputs": len(inputs), "bytes": spec.disk - left})
    return Staged(workspace=workspace, inputs=inputs)


def _weigh(path: Path) -> int:
    """Return the sum of the files of an input whose size nobody has declared."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _make_expected_folders(spec: ExperimentSpec, workspace: Path) -> None:
    """Make the folders that the experiment is told to write to; a file of that name in the workspace stays."""
    for path in (DEFAULT_OUTPUTS, f"{Path(PROGRESS_FILE).parent}/", *spec.outputs):
        if path.endswith("/"):
            with suppress(FileExistsError, NotADirectoryError):
                (workspace / path).mkdir(parents=True, exist_ok=True)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say in every refusal what it is about."""
    try:
        yield
    except (ArtifactRefused, NotFound) as error:
        raise type(error)(f"{what}: {error.message}", hint=error.hint) from None
