"""How an experiment ended and the files that it left, as marker and manifest in the store say, checked by digests."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from jobqueue.artifacts import Manifest, OutputFile, attempt_prefix, output_key
from jobqueue.errors import ArtifactRefused, InvalidSpec, JobqueueError, NotFound, Problem
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import State
from jobqueue.marker import Marker
from jobqueue.quantities import describe_size
from jobqueue.registry.base import Record
from jobqueue.storage.base import Store
from jobqueue.storage.manifests import load_manifest
from jobqueue.storage.markers import read_marker
from producers.ending import apply_marker, make_error

RESULT_FILE: Final = "outputs/result.json"
# What an experiment wrote is parsed in the memory of whoever asks for it.
LARGEST_RESULT_BYTES: Final = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The prefix of an attempt, its files by path, and what was left out."""

    prefix: str
    files: dict[str, OutputFile]
    left_out: tuple[str, ...]


class Outputs:
    """The outputs of one experiment; they can be read once it is over, also when it failed.

    Iterating gives the paths, relative to the workspace. Every method raises `NotFound` while the experiment is not
    over, and `StoreUnavailable` when the store does not answer.

    Args:
        open_store: returns the store; called when something is read.
    """

    def __init__(self, experiment_id: ExperimentId, open_store: Callable[[], Store]) -> None:
        self._experiment_id = experiment_id
        self._open_store = open_store
        self._marker: Marker | None = None
        self._found: _Found | None = None

    @property
    def marker(self) -> Marker:
        """How it ended, in the words of the attempt that committed."""
        if self._marker is None:
            self._marker = read_marker(self._open_store(), self._experiment_id)
        if self._marker is None:
            raise NotFound(
                f"the store has no result of {self._experiment_id}", hint="is it over? exp.wait() waits for it"
            )
        return self._marker

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """Every file with its size in bytes and its sha256."""
        return tuple(self._find().files.values())

    @property
    def left_out(self) -> tuple[str, ...]:
        """What was asked for and is not there, each with the reason: a link that leads out, a name that cannot be."""
        return self._find().left_out

    def __iter__(self) -> Iterator[str]:
        return iter(self._find().files)

    def __len__(self) -> int:
        return len(self._find().files)

    def __contains__(self, path: object) -> bool:
        return path in self._find().files

    def __repr__(self) -> str:
        return f"<Outputs of {self._experiment_id}>"

    def read_bytes(self, path: str) -> bytes:
        """Return one file's content.

        Raises:
            NotFound: there is no such output.
            ArtifactRefused: its bytes are not the ones that the attempt left.
        """
        return b"".join(self._pieces(self._get(path)))

    def download(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write every file below `folder`, which is made if need be, and return where they lie.

        A file appears whole or not at all; one that is there already is replaced.

        Raises:
            InvalidSpec: the folder's name is empty.
            ArtifactRefused: a path leads out of the folder, two are one file there, as where case does not count, or
                bytes are not the ones that the attempt left.
        """
        if not str(folder).strip():  # of a variable that is not set, say: the current folder has to be named
            raise InvalidSpec([Problem(path="folder", message="is empty (use a path, such as 'results')")])
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        written = dict[tuple[int, int], str]()
        return [self._write(file, root, written) for file in self.files]

    def _write(self, file: OutputFile, root: Path, written: dict[tuple[int, int], str]) -> Path:
        target = root / _safe_path(file.path)
        if not target.parent.resolve().is_relative_to(root.resolve()):
            raise ArtifactRefused(f"{file.path!r} leads out of {root} by a link", hint="download into an empty folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        if other := written.get(_find_identity(target)):
            hint = "download where case counts, or read them with outputs.read_bytes()"
            raise ArtifactRefused(f"{other!r} and {file.path!r} are one file below {root}", hint=hint)
        beside = target.parent / f".{secrets.token_hex(8)}.part"
        try:
            with beside.open("xb") as file_beside:
                file_beside.writelines(self._pieces(file))
            beside.replace(target)
            written[_find_identity(target)] = file.path
            return target
        finally:
            beside.unlink(missing_ok=True)

    def _pieces(self, file: OutputFile) -> Iterator[bytes]:
        digest, left_bytes = hashlib.sha256(), file.size_bytes
        for piece in self._open_store().get(output_key(self._find().prefix, file.path)):
            left_bytes -= len(piece)
            if left_bytes < 0:  # it may have no end, and this disk has
                break
            digest.update(piece)
            yield piece
        if left_bytes or digest.hexdigest() != file.sha256:
            raise ArtifactRefused(
                f"{file.path!r} has changed in the store since the attempt left it", hint="run the experiment again"
            )

    def _get(self, path: str) -> OutputFile:
        files = self._find().files
        if path not in files:
            known = ", ".join(sorted(files)[:10]) or "none"
            raise NotFound(f"{self._experiment_id} has no output {path!r}", hint=f"there are: {known}")
        return files[path]

    def _find(self) -> "_Found":
        """Return what the attempt that committed has left."""
        if self._found is None:
            store, marker = self._open_store(), self.marker
            prefix = attempt_prefix(self._experiment_id, marker.attempt, marker.token)
            digest = marker.manifest_sha256
            manifest = load_manifest(store, prefix, sha256=digest) if marker.manifest else Manifest()
            files = {file.path: file for file in manifest.files}
            self._found = _Found(prefix=prefix, files=files, left_out=manifest.left_out)
        return self._found


def confirm_end(record: Record, outputs: Outputs) -> Record:
    """Return a record; where the registry, to which others can write, tells of a success, as the marker has the end.

    Raises:
        ArtifactRefused: there is no marker, or none that can be read.
        StoreUnavailable: nobody can say.
    """
    if record.state is not State.SUCCEEDED:
        return record
    try:
        return apply_marker(record, outputs.marker)
    except NotFound:
        told = f"the registry says that {record.submission.id} has succeeded, but the store has no result of it"
        raise ArtifactRefused(told, hint="is JOBQUEUE_STORAGE_URL here the one that the nodes write to?") from None


def find_error(record: Record, outputs: Outputs) -> JobqueueError | None:
    """Return what keeps an experiment that is over from being a success; None when it is one.

    A success that the store does not confirm is returned as well: of a future whose `exception` raises, an event loop
    would never hear.

    Raises:
        StoreUnavailable: nobody can say.
    """
    try:
        return make_error(confirm_end(record, outputs))
    except ArtifactRefused as error:
        return error


def read_result(outputs: Outputs) -> Any:
    """Return the parsed result file, or the exit code where there is none.

    Raises:
        ArtifactRefused: it is not JSON, or larger than 16 MiB.
    """
    file = next((file for file in outputs.files if file.path == RESULT_FILE), None)
    if file is None:
        return {"exit_code": outputs.marker.exit_code or 0}
    if file.size_bytes > LARGEST_RESULT_BYTES:
        size, most = describe_size(file.size_bytes), describe_size(LARGEST_RESULT_BYTES)
        raise ArtifactRefused(
            f"{RESULT_FILE} has {size}, a result {most} at most",
            hint=f"exp.outputs.read_bytes({RESULT_FILE!r}) gives it as it is",
        )
    try:
        return json.loads(outputs.read_bytes(RESULT_FILE))
    except (ValueError, RecursionError) as error:
        raise ArtifactRefused(
            f"{RESULT_FILE} is not JSON: {error}", hint=f"exp.outputs.read_bytes({RESULT_FILE!r}) gives it as it is"
        ) from None


def _find_identity(path: Path) -> tuple[int, int]:
    """Return what a file is whatever it is called; of one that is not there, what no file is."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return (-1, -1)
    return (status.st_dev, status.st_ino)


def _safe_path(path: str) -> PurePosixPath:
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts or "\0" in path:
        raise ArtifactRefused(f"not a path below a folder: {path!r}", hint="read it with outputs.read_bytes()")
    return relative
