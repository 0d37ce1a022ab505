"""Named files and trees with their address and digest, and where each kind lies in the store.

workspaces/<sha256>.tar.zst                          packed once per content
inputs/<sha256>[.tar.zst]                            uploaded from the submitter's disk
experiments/<id>/RESULT                              the result marker: the truth about the end
experiments/<id>/attempts/<n>-<token>/outputs/<path>
experiments/<id>/attempts/<n>-<token>/manifest.json
experiments/<id>/attempts/<n>-<token>/logs/<stream>/<offset of the first byte>
"""

import json
import unicodedata
from dataclasses import asdict, dataclass
from typing import Final

from jobqueue.errors import ArtifactRefused
from jobqueue.ids import ExperimentId

ARCHIVE_SUFFIX = ".tar.zst"
MAX_NAME_BYTES: Final = 255
MAX_PATH_BYTES: Final = 2048
MAX_TREE_DEPTH: Final = 32
MAX_TREE_ENTRIES: Final = 100_000


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file, or a tree packed as `.tar.zst`, that an experiment reads.

    Attributes:
        uri: where it lies: `s3://bucket/key`, `https://host/path`, or `store:key` for the project's own
            store. It may carry a signature, which no text about it shows.
        sha256: of the bytes at `uri`, in hex; empty when the submitter did not know it.
        size_bytes: of the bytes at `uri`; 0 when the submitter did not know it.
        unpacked_bytes: of a tree: the sum of its files; 0 for a file.
    """

    uri: str
    sha256: str = ""
    size_bytes: int = 0
    unpacked_bytes: int = 0

    @property
    def is_tree(self) -> bool:
        """Tell whether the bytes are an archive to be unpacked."""
        address = self.uri.partition("?")[0] if self.uri.startswith(("https:", "http:")) else self.uri
        return address.endswith(ARCHIVE_SUFFIX)

    def __repr__(self) -> str:
        """Return it without what follows the path of its address."""
        shown, query, _ = self.uri.partition("?")
        fields = f"sha256={self.sha256!r}, size_bytes={self.size_bytes}, unpacked_bytes={self.unpacked_bytes}"
        return f"Artifact(uri={shown + query + (query and '...')!r}, {fields})"


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """One file of an attempt's outputs: its path in the workspace, its size, its digest."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one attempt left behind: its files, and why some were left out."""

    files: tuple[OutputFile, ...] = ()
    left_out: tuple[str, ...] = ()


def path_fault(path: str) -> str:
    """Return what keeps a `/`-separated path from naming a file below a folder; empty when nothing does."""
    parts = path.split("/")
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        return "is not UTF-8"
    if not path.isprintable() and any(ord(letter) < ord(" ") or letter == "\x7f" for letter in path):
        return "has a control character"
    if any(part in ("", ".", "..") for part in parts):
        return "is absolute, or has an empty, `.` or `..` part"
    if longest > MAX_NAME_BYTES:
        return f"has a name of more than {MAX_NAME_BYTES} bytes"
    if len(path.encode()) > MAX_PATH_BYTES:
        return f"has more than {MAX_PATH_BYTES} bytes"
    return ""


def fold_path(path: str) -> str:
    """Return what two paths share that name one file where case, or the way a letter is composed, does not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def manifest_to_json(manifest: Manifest) -> bytes:
    """Return the manifest as it lies in the store."""
    return json.dumps(asdict(manifest), indent=1).encode()


def manifest_from_json(content: bytes) -> Manifest:
    """Return the manifest that lies in the store.

    Raises:
        ArtifactRefused: it is not one, or has a path that leads out of the folder it is downloaded to.
    """
    try:
        fields = json.loads(content)
        files = tuple(_output_file(**file) for file in fields["files"])
        return Manifest(files=files, left_out=tuple(str(line) for line in fields["left_out"]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ArtifactRefused(f"not a manifest: {error}") from None


def _output_file(*, path: str, size_bytes: int, sha256: str) -> OutputFile:
    if fault := path_fault(path):
        raise ValueError(f"its path {path!r} {fault}")
    if int(size_bytes) < 0:
        raise ValueError(f"the size of {path!r} is below 0")
    return OutputFile(path=path, size_bytes=int(size_bytes), sha256=str(sha256))


def workspace_key(sha256: str) -> str:
    """Return where a packed workspace lies."""
    return f"workspaces/{sha256}{ARCHIVE_SUFFIX}"


def input_key(sha256: str, *, tree: bool) -> str:
    """Return where an uploaded input lies."""
    return f"inputs/{sha256}{ARCHIVE_SUFFIX if tree else ''}"


def result_key(experiment_id: ExperimentId) -> str:
    """Return where the result marker lies."""
    return f"experiments/{experiment_id}/RESULT"


def attempt_prefix(experiment_id: ExperimentId, attempt: int, token: int) -> str:
    """Return the prefix, without a trailing slash, that belongs to one attempt alone."""
    return f"experiments/{experiment_id}/attempts/{attempt}-{token}"


def output_key(prefix: str, path: str) -> str:
    """Return where the output `path` of the attempt with `prefix` lies."""
    return f"{prefix}/outputs/{path}"


def manifest_key(prefix: str) -> str:
    """Return where the manifest of the attempt with `prefix` lies."""
    return f"{prefix}/manifest.json"


def log_key(prefix: str, stream: str, offset: int) -> str:
    """Return where the log chunk lies that begins at byte `offset` of one stream; keys sort in order."""
    return f"{log_prefix(prefix, stream)}{offset:016d}"


def log_prefix(prefix: str, stream: str) -> str:
    """Return the prefix of the log chunks of one stream."""
    return f"{prefix}/logs/{stream}/"
