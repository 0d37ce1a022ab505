"""An attempt's folder holds what the spec names, checked, and nothing of what a hostile artifact asks for."""

import errno
import hashlib
import io
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import zstandard

from jobqueue.artifacts import Artifact, input_key
from jobqueue.errors import ArtifactRefused, NotFound, StoreUnavailable
from jobqueue.ids import make_experiment_id
from jobqueue.registry.base import Lease
from jobqueue.spec import ExperimentSpec, parse_spec
from jobqueue.storage import open_store
from jobqueue.storage.base import Store
from producers.packaging import pack_workspace, upload_input
from workers.attempt.downloads import Source, fetch_file, fetch_tree
from workers.attempt.input_cache import InputCache
from workers.attempt.workspace import Staged, attempt_folder, remove, stage_in

MEBIBYTE = 1 << 20


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid4()}")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def folder(cache: Path) -> Path:
    return attempt_folder(cache, Lease(experiment_id=make_experiment_id(), attempt=2, token=17))


def spec(
    *, workspace: Artifact | None = None, disk: object = "1GiB", outputs: object = None, **inputs: Artifact
) -> ExperimentSpec:
    fields = {"image": "python:3.12", "command": ["true"], "workspace": workspace, "inputs": inputs, "disk": disk}
    return parse_spec(fields | ({"outputs": outputs} if outputs else {}))


@pytest.fixture
def work(tmp_path: Path, store: Store) -> Artifact:
    work = tmp_path / "work"
    (work / "src").mkdir(parents=True)
    (work / "train.py").write_text("print(1)")
    (work / "src" / "run.sh").write_text("#!/bin/sh")
    (work / "src" / "run.sh").chmod(0o755)
    return pack_workspace(work, store)[0]


def put(store: Store, content: bytes, *, tree: bool = False, **fields: object) -> Artifact:
    sha256 = hashlib.sha256(content).hexdigest()
    key = input_key(sha256, tree=tree)
    store.put(key, content)
    return Artifact(**({"uri": f"store:{key}", "sha256": sha256, "size_bytes": len(content)} | fields))  # type: ignore[arg-type]


def tree(**files: bytes) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return zstandard.compress(plain.getvalue())


def keep(folder: Path) -> InputCache:
    return InputCache(folder=folder, size_bytes=1 << 30)


def nothing_is_left_of_what_was_begun(cache: Path) -> bool:
    return not any((cache / "incoming").iterdir())


def test_the_folder_tells_whose_it_is(cache: Path, folder: Path) -> None:
    assert folder.parent == cache / "attempts"
    assert folder.name.endswith("-2-17")


def test_the_workspace_is_unpacked_and_the_inputs_are_at_hand(
    folder: Path, store: Store, cache: Path, work: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1")
    (tmp_path / "weights").write_bytes(b"w" * 3 * MEBIBYTE)
    inputs = {name: upload_input(tmp_path / name, store)[0] for name in ("data", "weights")}
    staged = stage_in(spec(workspace=work, **inputs), folder, store=store, cache=keep(cache))
    assert staged.workspace == folder / "workspace"
    assert (staged.workspace / "train.py").read_text() == "print(1)"
    assert os.access(staged.workspace / "src" / "run.sh", os.X_OK)
    assert (staged.inputs["data"] / "a.csv").read_text() == "1"
    assert staged.inputs["weights"].stat().st_size == 3 * MEBIBYTE
    assert nothing_is_left_of_what_was_begun(cache)


def test_nothing_asked_for_is_an_empty_workspace_with_its_outputs(folder: Path, store: Store, cache: Path) -> None:
    staged = stage_in(spec(outputs=["metrics/deep/", "model.pt"]), folder, store=store, cache=keep(cache))
    found = {str(path.relative_to(staged.workspace)) for path in staged.workspace.rglob("*")}
    assert found == {"outputs", ".jobqueue", "metrics", "metrics/deep"}
    assert staged.inputs == {}


def test_a_file_that_stands_for_an_output_folder_stays(folder: Path, store: Store, cache: Path) -> None:
    workspace = put(store, tree(outputs=b"a file"), tree=True)
    staged = stage_in(spec(workspace=workspace, outputs=["outputs/deep/"]), folder, store=store, cache=keep(cache))
    assert (staged.workspace / "outputs").read_bytes() == b"a file"


def test_only_the_experiments_user_writes_to_the_workspace_and_nobody_to_the_inputs(
    folder: Path, store: Store, cache: Path, work: Artifact
) -> None:
    inputs = {"file": put(store, b"1"), "tree": put(store, tree(a=b"1"), tree=True)}
    mask = os.umask(0o077)
    try:
        staged = stage_in(spec(workspace=work, **inputs), folder, store=store, cache=keep(cache))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((cache / "kept").stat().st_mode) == 0o700
    user = os.geteuid() or 65534
    assert {path.stat().st_uid for path in (staged.workspace, *staged.workspace.rglob("*"))} == {user}
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (staged.inputs["file"], staged.inputs["tree"] / "a")]
    assert modes == [0o444, 0o444]
    assert stat.S_IMODE(staged.inputs["tree"].stat().st_mode) == 0o755


class Closed:
    """A store that has nothing and answers nobody."""

    def get(self, _key: str) -> Iterator[bytes]:
        raise StoreUnavailable("it is down")


def test_what_is_in_the_cache_is_not_fetched_again(folder: Path, store: Store, cache: Path, work: Artifact) -> None:
    wanted = spec(workspace=work, file=put(store, b"1"), tree=put(store, tree(a=b"1"), tree=True))
    first = stage_in(wanted, folder, store=store, cache=keep(cache))
    (first.workspace / "train.py").write_text("changed by the first attempt")
    second = stage_in(wanted, folder.with_name("again"), store=Closed(), cache=keep(cache))  # type: ignore[arg-type]
    assert (second.workspace / "train.py").read_text() == "print(1)"
    assert second.inputs == first.inputs


def test_what_an_earlier_try_left_in_the_folder_is_gone(
    folder: Path, store: Store, cache: Path, work: Artifact
) -> None:
    (folder / "workspace").mkdir(parents=True)
    (folder / "workspace" / "train.py").symlink_to("/etc/passwd")
    staged = stage_in(spec(workspace=work), folder, store=store, cache=keep(cache))
    assert not (staged.workspace / "train.py").is_symlink()


def test_removing_an_attempt_leaves_the_cache(folder: Path, store: Store, cache: Path) -> None:
    staged = stage_in(spec(data=put(store, b"1")), folder, store=store, cache=keep(cache))
    assert remove(folder)
    assert staged.inputs["data"].read_bytes() == b"1"


def test_an_input_of_unknown_digest_is_kept_under_its_own(folder: Path, store: Store, cache: Path) -> None:
    artifact = put(store, tree(a=b"1"), tree=True, sha256="", size_bytes=0)
    staged = stage_in(spec(data=artifact), folder, store=store, cache=keep(cache))
    assert staged.inputs["data"].parent.name == f"{hashlib.sha256(tree(a=b'1')).hexdigest()}.tree"
    assert stage_in(spec(data=artifact), folder, store=store, cache=keep(cache)) == staged


def test_another_slot_that_was_faster_wins(
    folder: Path, store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The faster one gives the slower one up at once.
    monkeypatch.setattr("workers.attempt.input_cache.STALLED", timedelta(0))
    artifact = put(store, tree(a=b"1"), tree=True)
    faster: list[Staged] = []

    class Slow:
        def get(self, key: str) -> Iterator[bytes]:
            if not faster:
                faster.append(stage_in(spec(data=artifact), folder.with_name("faster"), store=store, cache=keep(cache)))
            return store.get(key)

    staged = stage_in(spec(data=artifact), folder, store=Slow(), cache=keep(cache))  # type: ignore[arg-type]
    assert staged.inputs == faster[0].inputs
    assert nothing_is_left_of_what_was_begun(cache)


def refused(spec: ExperimentSpec, folder: Path, store: Store, cache: Path) -> str:
    with pytest.raises(ArtifactRefused) as raised:
        stage_in(spec, folder, store=store, cache=keep(cache))
    assert not (cache / "incoming").exists() or nothing_is_left_of_what_was_begun(cache)
    assert not list((cache / "kept").glob("*.tree"))
    return str(raised.value)


@pytest.mark.parametrize("uri", ["store:inputs/missing", "store:inputs/missing.tar.zst"])
def test_a_missing_input_is_named(folder: Path, store: Store, cache: Path, uri: str) -> None:
    with pytest.raises(NotFound, match="input 'data': the store has no inputs/missing"):
        stage_in(spec(data=Artifact(uri=uri)), folder, store=store, cache=keep(cache))


def test_a_missing_workspace_is_named(folder: Path, store: Store, cache: Path) -> None:
    with pytest.raises(NotFound, match="the workspace: the store has no"):
        stage_in(spec(workspace=Artifact(uri="store:workspaces/x.tar.zst")), folder, store=store, cache=keep(cache))


WRONG = {
    "another content": ({"sha256": "0" * 64}, "not what was submitted"),
    "less than declared": ({"size_bytes": 6}, "has 5 bytes in the store, not 6"),
    "more than declared": ({"size_bytes": 4}, "more than the declared 4 bytes"),
    "more than the disk, as declared": ({"size_bytes": 2 << 30}, "does not fit in 1 GiB.*disk="),
    "no address": ({"uri": "ftp://host/file"}, "not the address"),
    "the node's own file": ({"uri": "file:///etc/passwd"}, "not the address"),
    "a key that leads out": ({"uri": "store:../../etc/passwd"}, "not a storage key"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_input_that_is_not_what_was_submitted_is_refused_by_name(
    folder: Path, store: Store, cache: Path, what: str
) -> None:
    fields, message = WRONG[what]
    said = refused(spec(data=put(store, b"12345", **fields)), folder, store, cache)
    assert said.startswith("input 'data': ")
    assert re.search(message, said)


@pytest.mark.parametrize("sha256", ["../../../etc/passwd", "A" * 64, "/etc/passwd", "0" * 63])
def test_what_is_no_digest_never_becomes_a_path(store: Store, cache: Path, sha256: str) -> None:
    source = Source(artifact=put(store, b"1", sha256=sha256), store=store, key="x", max_bytes=10)
    for fetch in (fetch_file, fetch_tree):
        with pytest.raises(ArtifactRefused, match="not a sha256"):
            fetch(source, keep(cache), cache / "place")


def test_an_input_that_nobody_declared_is_bounded_by_the_disk_while_it_arrives(folder: Path, cache: Path) -> None:
    pieces = 0

    class Endless:
        def get(self, _key: str) -> Iterator[bytes]:
            nonlocal pieces
            while True:
                pieces += 1
                yield b"x" * MEBIBYTE

    said = refused(spec(disk="4MiB", data=Artifact(uri="store:inputs/x")), folder, Endless(), cache)  # type: ignore[arg-type]
    assert "does not fit in 4 MiB" in said
    assert pieces == 5


def test_everything_together_is_bounded_by_the_disk(folder: Path, store: Store, cache: Path) -> None:
    inputs = {f"data{number}": put(store, os.urandom(400)) for number in range(3)}
    assert "input 'data2'" in refused(spec(disk=1000, **inputs), folder, store, cache)


def test_a_hostile_workspace_is_refused_by_the_name_of_its_entry(folder: Path, store: Store, cache: Path) -> None:
    artifact = put(store, tree(**{"../../evil": b"x"}), tree=True)
    said = refused(spec(workspace=artifact), folder, store, cache)
    assert "the workspace: '../../evil'" in said
    assert not list(cache.rglob("evil"))


def test_a_hostile_input_is_refused_by_its_name_and_leaves_nothing(folder: Path, store: Store, cache: Path) -> None:
    artifact = put(store, tree(good=b"1", **{"/evil": b"x"}), tree=True)
    assert "input 'data': '/evil'" in refused(spec(data=artifact), folder, store, cache)


def test_a_bomb_is_bounded_by_what_was_declared_and_by_the_disk(folder: Path, store: Store, cache: Path) -> None:
    bomb = tree(zeros=b"\0" * 8 * MEBIBYTE)
    declared = put(store, bomb, tree=True, unpacked_bytes=MEBIBYTE)
    assert "more than 1 MiB" in refused(spec(data=declared), folder, store, cache)
    honest = put(store, bomb, tree=True, unpacked_bytes=8 * MEBIBYTE)
    assert "does not fit in 2 MiB" in refused(spec(data=honest, disk="2MiB"), folder, store, cache)
    staged = stage_in(spec(data=honest), folder, store=store, cache=keep(cache))
    assert (staged.inputs["data"] / "zeros").stat().st_size == 8 * MEBIBYTE


def test_a_store_that_is_down_is_no_fault_of_the_input(folder: Path, cache: Path) -> None:
    with pytest.raises(StoreUnavailable):
        stage_in(spec(data=Artifact(uri="store:inputs/x")), folder, store=Closed(), cache=keep(cache))  # type: ignore[arg-type]


def test_a_download_that_breaks_off_leaves_nothing(folder: Path, cache: Path) -> None:
    class Breaking:
        def get(self, _key: str) -> Iterator[bytes]:
            yield b"half"
            raise StoreUnavailable("it went away")

    with pytest.raises(StoreUnavailable):
        stage_in(spec(data=Artifact(uri="store:inputs/x")), folder, store=Breaking(), cache=keep(cache))  # type: ignore[arg-type]
    assert nothing_is_left_of_what_was_begun(cache)
    assert not any((cache / "kept").iterdir())


def test_a_full_disk_is_told_as_such(folder: Path, store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        stage_in(spec(data=put(store, b"1")), folder, store=store, cache=keep(cache))
    assert raised.value.errno == errno.ENOSPC
    assert not isinstance(raised.value, StoreUnavailable)
