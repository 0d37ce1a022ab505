"""Where artifacts live, by the scheme of their address.

    s3://bucket/prefix    any S3; credentials from the usual AWS_* variables
    file:///folder        a folder of this machine, or one that all machines mount
    memory://name         this process alone, for tests
    granted:              a clerk who has credentials grants what an experiment needs: for nodes without any

Inputs lie there, or behind `https://host/path`. What a node reads for experiments is what its operator allows.

The libraries are imported when a store is opened, so that importing this package costs nothing.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

from jobqueue.errors import ArtifactRefused, InvalidSetting, InvalidSpec, Problem
from jobqueue.ids import ExperimentId
from jobqueue.storage.base import GRANTED, Readable, Store, check_key
from jobqueue.storage.hosts import Host, parse_target

if TYPE_CHECKING:
    from jobqueue.permit import Permit
    from jobqueue.storage.granted import GrantedStore

STORE_SCHEME: Final = "store:"
_WEB: Final = ("https", "http")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


def open_store(url: str, *, endpoint: str = "", granted: "GrantedStore | None" = None) -> Store:
    """Return the store at `url`; a folder is made if it is not there, a bucket is not.

    Args:
        url: `s3://bucket/prefix`, `file:///folder`, `memory://name` or `granted:`.
        endpoint: of an S3 store other than Amazon's, as in `http://127.0.0.1:9000`.
        granted: what `granted:` means here; None where only the store itself will do.

    Raises:
        InvalidSetting: the URL names no store, or none that will do.
        StoreUnavailable: the folder cannot be made.
    """
    parts = _split(url)
    if folders := folders_of(url):
        from jobqueue.storage.folder import open_folder

        return open_folder(*folders)
    if parts.scheme == "s3" and _is_plain(parts) and _BUCKET.fullmatch(parts.netloc):
        return _s3(parts.netloc, unquote(parts.path).strip("/"), endpoint)
    if parts.scheme == "memory" and _is_plain(parts):
        return _memory(parts.netloc + parts.path)
    if url == GRANTED and granted:
        return granted
    if url == GRANTED:
        hint = "set JOBQUEUE_STORAGE_URL to the store's own address here; granted: is for workers"
        raise InvalidSetting("this needs the store itself, not what a clerk grants of it", hint=hint)
    raise InvalidSetting(
        f"not a store: {url.partition('?')[0]!r}", hint="use s3://bucket/prefix, file:///folder or memory://"
    )


def folders_of(url: str) -> tuple[Path, ...]:
    """Return the folder that a store is, if it is one."""
    parts = _split(url)
    is_folder = parts.scheme == "file" and _is_plain(parts) and not parts.netloc and parts.path.startswith("/")
    return (Path(unquote(parts.path)),) if is_folder else ()


def scope(store: Store, *, queue: str, experiment_id: ExperimentId | None = None, envelope: bytes = b"") -> Store:
    """Return a store as the experiment of an envelope may use it, which makes a difference where a clerk grants."""
    granted = _as_granted(store)
    return granted.scoped(queue=queue, experiment_id=experiment_id, envelope=envelope) if granted else store


def show_permit(store: Store, permit: "Permit | None", *, attempt: int, token: int) -> None:
    """Show a clerk, where one grants, what the sender lets an experiment read, and under which lease it asks.

    Raises:
        InvalidSpec: there is none, so that a clerk would take no result either.
    """
    if granted := _as_granted(store):
        if permit is None:
            what = "without the permit that this node needs (submit it with a current client)"
            raise InvalidSpec([Problem(path="", message=what)])
        granted.show(permit, attempt=attempt, token=token)


def _as_granted(store: Store) -> "GrantedStore | None":
    from jobqueue.storage.granted import GrantedStore

    return store if isinstance(store, GrantedStore) else None


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What may be read beside the project's own store; by default nothing, since a node reads with its own rights.

    Attributes:
        endpoint: of S3, as for `open_store`; no address names another one.
        buckets: which `s3://` may name, by shell patterns.
        hosts: which `https://` may name.
        within: how long one input may take to arrive from a host.
    """

    endpoint: str = ""
    buckets: tuple[str, ...] = ()
    hosts: tuple[Host, ...] = ()
    within: timedelta = timedelta(hours=1)


def check_address(uri: str) -> None:
    """Return when something could lie at an address; whether a node may read it, only the node knows.

    Raises:
        ArtifactRefused: it is not the address of an artifact.
    """
    parts = _split(uri)
    if uri.startswith(STORE_SCHEME):
        check_key(uri.removeprefix(STORE_SCHEME))
    elif parts.scheme in _WEB:
        parse_target(uri)
    elif parts.scheme == "s3" and _is_plain(parts) and _BUCKET.fullmatch(parts.netloc):
        check_key(_path(parts))
    else:
        raise ArtifactRefused(
            f"not the address of an artifact: {uri.partition('?')[0]!r}",
            hint="use store:key, s3://bucket/key or https://host/path; to upload a file, submit its path",
        )


def locate(uri: str, *, default: Store, allowed: Allowed | None = None) -> tuple[Readable, str]:
    """Return what holds an artifact, and its key there.

    Args:
        uri: `store:key`, `s3://bucket/key` or `https://host/path`.
        default: the project's own store, which `store:` means.
        allowed: what else may be read; nothing by default.

    Raises:
        ArtifactRefused: it is not such an address, or leads where it may not.
    """
    check_address(uri)
    if uri.startswith(STORE_SCHEME):
        return default, uri.removeprefix(STORE_SCHEME)
    allowed = allowed or Allowed()
    parts = _split(uri)
    if parts.scheme == "s3" and (granted := _as_granted(default)):
        return granted.beside(uri), _path(parts)
    if parts.scheme == "s3":
        _require_bucket(parts.netloc, allowed.buckets)
        return _s3(parts.netloc, "", allowed.endpoint), _path(parts)
    from jobqueue.storage.web import open_web_file

    return open_web_file(uri, hosts=allowed.hosts, within=allowed.within)


def own_bucket(url: str) -> tuple[str, ...]:
    """Return the bucket of the store at `url`; nothing where it is no bucket."""
    parts = _split(url)
    return (parts.netloc,) if parts.scheme == "s3" else ()


def _require_bucket(bucket: str, buckets: tuple[str, ...]) -> None:
    if not any(fnmatchcase(bucket, pattern) for pattern in buckets):
        raise ArtifactRefused(
            f"this node reads nothing from the bucket {bucket}, which its JOBQUEUE_INPUT_BUCKETS does not name",
            hint="upload it, or ask the node's operator",
        )


def _path(parts: SplitResult) -> str:
    return unquote(parts.path).removeprefix("/")


def _split(address: str) -> SplitResult:
    """Return the parts of an address; none where it cannot even be split, as in `s3://[`."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_plain(parts: SplitResult) -> bool:
    """Tell whether there is nothing in it but scheme, host and path: no user, port, query or fragment."""
    return not (parts.query or parts.fragment or set(parts.netloc) & set("@:["))


@cache
def _s3(bucket: str, prefix: str, endpoint: str) -> Store:
    from jobqueue.storage.obstore import open_bucket

    return open_bucket(bucket, prefix=prefix, endpoint=endpoint)


@cache
def _memory(name: str) -> Store:
    del name
    from jobqueue.storage.obstore import open_memory

    return open_memory()
