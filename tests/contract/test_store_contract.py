"""What every store promises, over each of them."""

import os
import socket
import stat
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from services.clerk import open_counter
from services.moto import MotoServer

from jobqueue.errors import ArtifactRefused, InvalidSetting, NotFound, StoreUnavailable
from jobqueue.storage import Allowed, locate, open_store
from jobqueue.storage.base import Readable, Store, StoredObject, check_store

MEBIBYTE = 1 << 20


@pytest.fixture(params=[pytest.param(kind, id=kind) for kind in ("memory", "file", "s3", "granted")])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "memory":
        return open_store(f"memory://{uuid4()}")
    if request.param == "file":
        return open_store((tmp_path / "a store").as_uri())
    if request.param == "granted":
        return _granted(_bucket(request, monkeypatch), tmp_path)
    return _bucket(request, monkeypatch)


def _granted(whole: Store, folder: Path) -> Store:
    started = open_counter(folder / "keys of the roles", whole).start()
    return cast("Store", _Below(started.store, started.prefix))


class _Below:
    """What an attempt may use of a granted store, with keys as if it were all of a store."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, f"{prefix}/"

    def __getattr__(self, method: str) -> Any:
        def call(key: str, *arguments: Any) -> Any:
            return getattr(self._store, method)(self._prefix + key, *arguments)

        return call

    def list(self, prefix: str, *, after: str = "") -> Iterator[StoredObject]:
        for found in self._store.list(self._prefix + prefix, after=after and self._prefix + after):
            yield StoredObject(key=found.key.removeprefix(self._prefix), size_bytes=found.size_bytes)


@pytest.fixture
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    return _bucket(request, monkeypatch)


def _bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    server: MotoServer = request.getfixturevalue("s3_server")
    _credentials(monkeypatch)
    return open_store(server.make_bucket(f"bucket-{uuid4()}") + "/some/prefix", endpoint=server.url)


def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")


def _read(store: Readable, key: str) -> bytes:
    return b"".join(store.get(key))


def test_what_was_put_is_got(store: Store) -> None:
    store.put("a/b", b"content")
    assert _read(store, "a/b") == b"content"
    assert store.size("a/b") == 7


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty", b"")
    assert store.size("empty") == 0
    assert _read(store, "empty") == b""


def test_put_replaces(store: Store) -> None:
    store.put("key", b"longer than before")
    store.put("key", b"after")
    assert _read(store, "key") == b"after"


def test_an_unknown_key_is_not_found_before_the_first_piece(store: Store) -> None:
    store.put("folder/key", b"")
    for key in ("nothing", "folder", "folder/key/below"):
        assert store.size(key) is None
        with pytest.raises(NotFound, match=key):
            store.get(key)


def test_a_file_is_put_in_parts_and_got_in_bounded_pieces(store: Store, tmp_path: Path) -> None:
    content = os.urandom(MEBIBYTE) * 20
    source = tmp_path / "large"
    source.write_bytes(content)
    store.put("large", source)
    pieces = list(store.get("large"))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= 2 * MEBIBYTE
    assert len(pieces) >= 10


def test_a_small_and_an_empty_file_are_put_whole(store: Store, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "empty").write_bytes(b"")
    store.put("small", tmp_path / "small")
    store.put("empty", tmp_path / "empty")
    assert (_read(store, "small"), store.size("empty")) == (b"small", 0)


def test_a_source_that_is_not_there_is_not_the_stores_fault(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        store.put("key", tmp_path / "missing")
    assert not isinstance(raised.value, StoreUnavailable)
    assert store.size("key") is None
    assert list(store.list("")) == []


def test_only_the_first_writer_of_an_absent_key_wins(store: Store) -> None:
    assert store.put_if_absent("RESULT", b"first")
    assert not store.put_if_absent("RESULT", b"second")
    assert _read(store, "RESULT") == b"first"


def test_of_many_writers_at_once_exactly_one_wins(store: Store) -> None:
    start = threading.Barrier(8)

    def write(number: int) -> bool:
        start.wait()
        return store.put_if_absent("experiments/e/RESULT", b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert sum(won) == 1
    assert _read(store, "experiments/e/RESULT") == b"%d" % won.index(True)


def test_a_list_is_sorted_and_begins_with_the_prefix_to_the_letter(store: Store) -> None:
    for key in ("a/2", "a/1-x", "a/1/z", "a-b", "ab/1", "b", "a/10"):
        store.put(key, b"12")
    keys = {prefix: [found.key for found in store.list(prefix)] for prefix in ("", "a", "a/", "a/1", "c", "b/")}
    for prefix, found in keys.items():
        for place, key in enumerate(found):
            assert [each.key for each in store.list(prefix, after=key)] == found[place + 1 :]
    assert keys == {
        "": ["a-b", "a/1-x", "a/1/z", "a/10", "a/2", "ab/1", "b"],
        "a": ["a-b", "a/1-x", "a/1/z", "a/10", "a/2", "ab/1"],
        "a/": ["a/1-x", "a/1/z", "a/10", "a/2"],
        "a/1": ["a/1-x", "a/1/z", "a/10"],
        "c": [],
        "b/": [],
    }
    assert next(store.list("b")) == StoredObject(key="b", size_bytes=2)


ODD_KEYS = (
    "with space", "ü/é/日本", "50%", "a%20b", "a+b", "a#1", "a?b=c", "a&b", "back\\slash", "~tilde", "star*|<>",
    "e\u0301", "😀", "'quoted\"", "model.pt/v=1", "...", "x" * 255,
)  # fmt: skip


@pytest.mark.parametrize("key", ODD_KEYS)
def test_an_odd_key_is_kept_to_the_letter(store: Store, key: str) -> None:
    store.put(f"outputs/{key}", key.encode())
    assert _read(store, f"outputs/{key}") == key.encode()
    assert [found.key for found in store.list("outputs/")] == [f"outputs/{key}"]


BAD_KEYS = (
    "",
    "/a",
    "a//b",
    "a/",
    "..",
    "a/../b",
    "./a",
    "a\nb",
    "a\0b",
    "\x7f",
    "\udc80",
    "x" * 256,
    "/".join(["y" * 200] * 6),
)


@pytest.mark.security_case("huge body, slow client, path traversal in ids")
@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_not_every_store_can_hold_is_refused(store: Store, key: str) -> None:
    """A store key leads out of its prefix, or holds what some store reads as another key.

    Refused: by every kind of store, for reading and writing alike.
    Evidence: the error of each call, on S3, a folder and memory.
    """
    for call in (store.get, store.size, lambda key: store.put(key, b""), lambda key: store.put_if_absent(key, b"")):
        with pytest.raises(ArtifactRefused, match="not a storage key"):
            call(key)


def test_nothing_partial_is_seen_while_a_file_is_put(store: Store, tmp_path: Path) -> None:
    old, new = b"o" * MEBIBYTE, b"n" * (12 * MEBIBYTE)
    (tmp_path / "new").write_bytes(new)
    store.put("key", old)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(store.put, "key", tmp_path / "new")
        while not written.done():
            assert store.size("key") in (len(old), len(new))
    assert store.size("key") == len(new)


def test_a_large_file_passes_with_flat_memory(store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "memory" in request.node.name:
        return  # what lies in memory fills memory
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(192 * MEBIBYTE)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident_peak()
    store.put("sparse", source)
    assert sum(map(len, store.get("sparse"))) == 192 * MEBIBYTE
    assert _resident_peak() - before < 96 * MEBIBYTE


def _resident_peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_a_presigned_url_gives_the_object_and_takes_one(s3: Store) -> None:
    s3.put("a b/ü", b"content")
    with urllib.request.urlopen(s3.presign("a b/ü", method="GET", expires=timedelta(hours=1))) as answer:
        assert answer.read() == b"content"
    url = s3.presign("put", method="PUT", expires=timedelta(hours=1))
    urllib.request.urlopen(
        urllib.request.Request(url, data=b"put", method="PUT", headers={"Content-Type": "application/octet-stream"})
    ).close()
    assert _read(s3, "put") == b"put"


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_store_without_urls_says_so(scheme: str, tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri() if scheme == "file" else f"memory://{uuid4()}")
    with pytest.raises(StoreUnavailable, match="no URLs"):
        store.presign("key", method="GET", expires=timedelta(hours=1))


def test_memory_is_shared_by_name() -> None:
    name = f"memory://{uuid4()}"
    open_store(name).put("key", b"shared")
    assert _read(open_store(name), "key") == b"shared"
    assert open_store(f"memory://{uuid4()}").size("key") is None


def test_a_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    open_store((tmp_path / "new" / "store").as_uri()).put("a/b", b"")
    assert stat.S_IMODE((tmp_path / "new" / "store").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / "store" / "a" / "b").stat().st_mode) == 0o600


def test_a_folder_keeps_nothing_of_what_was_only_begun(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    store.put("key", b"")
    store.put_if_absent("key", b"again")
    assert list((tmp_path / ".incoming").iterdir()) == []


def test_a_folder_that_cannot_be_used_is_unavailable_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"file.*(exists|Not a directory)"):
        open_store((tmp_path / "file").as_uri())
    store = open_store((tmp_path / "store").as_uri())
    store.put("a", b"")
    with pytest.raises(StoreUnavailable, match="Not a directory"):
        store.put("a/b", b"")


def test_a_missing_bucket_is_unavailable_not_an_unknown_key(
    s3_server: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _credentials(monkeypatch)
    store = open_store(f"s3://bucket-{uuid4()}", endpoint=s3_server.url)
    for call in (lambda: store.get("key"), lambda: store.put("key", b""), lambda: list(store.list(""))):
        with pytest.raises(StoreUnavailable):
            call()


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


def test_a_store_that_does_not_answer_says_so_soon(deaf_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _credentials(monkeypatch)
    store = open_store("s3://bucket", endpoint=f"http://127.0.0.1:{deaf_port}")
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(store.size, "key"),
            pool.submit(store.put, "key", b""),
            pool.submit(lambda: list(store.list(""))),
        ]
    for call in calls:
        assert isinstance(call.exception(), StoreUnavailable)
    assert time.monotonic() - began < 30


def test_a_store_that_is_down_says_so_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _credentials(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store = open_store("s3://bucket", endpoint=f"http://127.0.0.1:{port}")
    (tmp_path / "file").write_bytes(b"x" * 9 * MEBIBYTE)
    began = time.monotonic()
    for call in (
        lambda: store.get("key"),
        lambda: store.put_if_absent("key", b""),
        lambda: store.put("k", tmp_path / "file"),
    ):
        with pytest.raises(StoreUnavailable) as raised:
            call()
        assert "jobqueue doctor" in raised.value.hint
    assert time.monotonic() - began < 30


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_is_told_instead_of_waiting_for_ever() -> None:
    store = open_store(f"memory://{uuid4()}")
    store.put("key", b"")
    child = os.fork()
    if child == 0:
        try:
            store.size("key")
        except StoreUnavailable:
            os._exit(17)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


BAD_URLS = (
    "",
    "folder",
    "/folder",
    "s3://",
    "s3://b",
    "s3://user:key@bucket",
    "s3://bucket?x=1",
    "file://host/folder",
    "http://h/x",
    "s3://[::1",
)


@pytest.mark.parametrize("url", BAD_URLS)
def test_what_is_no_store_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(InvalidSetting, match="not a store"):
        open_store(url)


def test_an_artifact_of_the_project_lies_in_its_own_store() -> None:
    default = open_store(f"memory://{uuid4()}")
    assert locate("store:inputs/abc", default=default) == (default, "inputs/abc")


def test_an_artifact_in_a_bucket_is_read_there(s3_server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    _credentials(monkeypatch)
    bucket = s3_server.make_bucket(f"bucket-{uuid4()}")
    open_store(bucket, endpoint=s3_server.url).put("data/cifar 10.tar.zst", b"tree")
    allowed = Allowed(endpoint=s3_server.url, buckets=("bucket-*",))
    store, key = locate(f"{bucket}/data/cifar%2010.tar.zst", default=open_store("memory://"), allowed=allowed)
    assert _read(store, key) == b"tree"


BAD_URIS = (
    "store:",
    "store:../x",
    "store:/x",
    "s3://bucket",
    "s3://bucket/",
    "s3://a@bucket/k",
    "s3://bucket/k?x",
    "ftp://h/k",
    "file:///etc/shadow",
    "s3://[::1",
    "k",
)


@pytest.mark.parametrize("uri", BAD_URIS)
def test_what_is_no_address_is_refused(uri: str) -> None:
    with pytest.raises(ArtifactRefused):
        locate(uri, default=open_store("memory://"))


def test_a_store_that_writes_once_passes_the_check(store: Store) -> None:
    check_store(store)
    check_store(store)


def test_a_store_that_overwrites_results_is_refused() -> None:
    class Overwriting:
        def put_if_absent(self, key: str, content: bytes) -> bool:
            return bool(key) or bool(content)

    with pytest.raises(InvalidSetting, match="If-None-Match"):
        check_store(Overwriting())  # type: ignore[arg-type]


def test_a_folder_that_is_gone_is_no_empty_store(tmp_path: Path) -> None:
    store = open_store((tmp_path / "mounted").as_uri())
    store.put("inputs/data", b"content")
    (tmp_path / "mounted").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable, match="is gone"):
        _read(store, "inputs/data")
    with pytest.raises(StoreUnavailable, match="is gone"):
        store.size("inputs/data")
