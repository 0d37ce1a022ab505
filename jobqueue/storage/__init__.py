"""Where artifacts live, by the scheme of their address.

    s3://bucket/prefix    any S3; credentials from the usual AWS_* variables
    file:///folder        a folder of this machine, or one that all machines mount
    memory://name         this process alone, for tests

The libraries are imported when a store is opened, so that importing this package costs nothing.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from jobqueue.errors import ArtifactRefused, InvalidSetting
from jobqueue.storage.base import Store, check_key

STORE_SCHEME: Final = "store:"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


def open_store(url: str, *, endpoint: str = "") -> Store:
    """Return the store at `url`; a folder is made if it is not there, a bucket is not.

    Args:
        url: `s3://bucket/prefix`, `file:///folder` or `memory://name`.
        endpoint: of an S3 store other than Amazon's, as in `http://127.0.0.1:9000`.

    Raises:
        InvalidSetting: the URL names no store.
        StoreUnavailable: the folder cannot be made.
    """
    parts = _split(url)
    if parts.scheme == "s3" and _is_plain(parts) and _BUCKET.fullmatch(parts.netloc):
        return _s3(parts.netloc, unquote(parts.path).strip("/"), endpoint)
    if parts.scheme == "file" and _is_plain(parts) and not parts.netloc and parts.path.startswith("/"):
        from jobqueue.storage.folder import open_folder

        return open_folder(Path(unquote(parts.path)))
    if parts.scheme == "memory" and _is_plain(parts):
        return _memory(parts.netloc + parts.path)
    raise InvalidSetting(
        f"not a store: {url.partition('?')[0]!r}", hint="use s3://bucket/prefix, file:///folder or memory://"
    )


def locate(uri: str, *, default: Store, endpoint: str = "", folders: Sequence[Path] = ()) -> tuple[Store, str]:
    """Return the store that holds an artifact, and its key there.

    Args:
        uri: `store:key`, `s3://bucket/key` or `file:///path`.
        default: the project's own store, which `store:` means.
        endpoint: of S3, as for `open_store`.
        folders: where `file://` may lead. None by default: a node must not hand any file of its own to an experiment.

    Raises:
        ArtifactRefused: it is not such an address, or leads where it may not.
    """
    if uri.startswith(STORE_SCHEME):
        return default, check_key(uri.removeprefix(STORE_SCHEME))
    parts = _split(uri)
    if parts.scheme == "s3" and _is_plain(parts) and _BUCKET.fullmatch(parts.netloc):
        return _s3(parts.netloc, "", endpoint), check_key(unquote(parts.path).removeprefix("/"))
    if parts.scheme == "file" and _is_plain(parts) and not parts.netloc:
        return _file(unquote(parts.path), folders)
    raise ArtifactRefused(
        f"not the address of an artifact: {uri.partition('?')[0]!r}",
        hint="use store:key, s3://bucket/key or file:///path",
    )


def _split(address: str) -> SplitResult:
    """Return the parts of an address; none where it cannot even be split, as in `s3://[`."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_plain(parts: SplitResult) -> bool:
    """Tell whether there is nothing in it but scheme, host and path: no user, port, query or fragment."""
    return not (parts.query or parts.fragment or set(parts.netloc) & set("@:["))


def _file(path: str, folders: Sequence[Path]) -> tuple[Store, str]:
    from jobqueue.storage.folder import FolderStore

    if "\0" in path:
        raise ArtifactRefused(f"not a path: {path!r}")
    resolved = Path(path).resolve()
    for folder in folders:
        root = folder.resolve()
        if resolved != root and resolved.is_relative_to(root):
            return FolderStore(root), check_key(str(resolved.relative_to(root)))
    raise ArtifactRefused(
        f"file://{path} lies outside the folders that experiments may read here",
        hint="submit the path itself, so that it is uploaded",
    )


@cache
def _s3(bucket: str, prefix: str, endpoint: str) -> Store:
    from jobqueue.storage.obstore import open_bucket

    return open_bucket(bucket, prefix=prefix, endpoint=endpoint)


@cache
def _memory(name: str) -> Store:
    del name
    from jobqueue.storage.obstore import open_memory

    return open_memory()
