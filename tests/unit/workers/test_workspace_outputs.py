"""What an experiment wrote is stored as it is, and what a hostile one left does no harm."""

import hashlib
import os
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from jobqueue.artifacts import Manifest, manifest_key, output_key
from jobqueue.errors import NotFound, StoreUnavailable
from jobqueue.spec import ExperimentSpec, parse_spec
from jobqueue.storage import open_store
from jobqueue.storage.base import Store
from jobqueue.storage.manifests import load_manifest
from workers.attempt.workspace import stage_out

PREFIX = "experiments/exp-01jd0000000000000000000000/attempts/1-1790000000123"
MEBIBYTE = 1 << 20


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid4()}")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    workspace = tmp_path / "attempt" / "workspace"
    (workspace / "outputs").mkdir(parents=True)
    return workspace


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("the node's own")
    return tmp_path / "secrets"


def spec(*outputs: str, disk: object = "1GiB") -> ExperimentSpec:
    named = {"outputs": outputs} if outputs else {}
    return parse_spec({"image": "python:3.12", "command": ["true"], "disk": disk, **named})


def write(folder: Path, *paths: str, content: bytes = b"x") -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def out(workspace: Path, store: Store, *outputs: str, disk: object = "1GiB") -> Manifest:
    return stage_out(spec(*outputs, disk=disk), workspace, store=store, prefix=PREFIX)


def paths(manifest: Manifest) -> list[str]:
    return [file.path for file in manifest.files]


def test_all_of_outputs_is_stored_by_default_with_a_manifest(workspace: Path, store: Store) -> None:
    write(workspace, "outputs/result.json", "outputs/deep/er/model.pt", "outputs/ü #1 50%.txt", "train.py", "other/x")
    large = os.urandom(3 * MEBIBYTE)
    write(workspace, "outputs/large", content=large)
    write(workspace, "outputs/empty", content=b"")
    manifest = out(workspace, store)
    assert paths(manifest) == [
        "outputs/deep/er/model.pt", "outputs/empty", "outputs/large", "outputs/result.json", "outputs/ü #1 50%.txt",
    ]  # fmt: skip
    assert manifest.left_out == ()
    for file in manifest.files:
        content = b"".join(store.get(output_key(PREFIX, file.path)))
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert content == (workspace / file.path).read_bytes()
    assert load_manifest(store, PREFIX) == manifest


def test_named_files_and_folders_are_stored_and_always_the_result(workspace: Path, store: Store) -> None:
    write(workspace, "model.pt", "metrics/a", "metrics/b/c", "outputs/result.json", "outputs/other", "unasked")
    manifest = out(workspace, store, "model.pt", "metrics/", "metrics", "metrics/a")
    assert paths(manifest) == ["metrics/a", "metrics/b/c", "model.pt", "outputs/result.json"]
    assert manifest.left_out == ()


def test_what_was_asked_for_and_is_not_there_is_named(workspace: Path, store: Store) -> None:
    write(workspace, "file")
    manifest = out(workspace, store, "model.pt", "metrics/", "file/below", "outputs/")
    assert paths(manifest) == []
    assert manifest.left_out == (
        "model.pt: the experiment did not write it",
        "metrics: the experiment did not write it",
        "file/below: it cannot be read: Not a directory",
    )


def test_no_outputs_are_an_empty_manifest(workspace: Path, store: Store) -> None:
    (workspace / "outputs").rmdir()
    assert out(workspace, store) == load_manifest(store, PREFIX) == Manifest()


def test_the_whole_workspace_can_be_asked_for_but_not_the_nodes_own_folder(workspace: Path, store: Store) -> None:
    write(workspace, "a", "b/c", ".jobqueue/progress", "b/.jobqueue/x")
    assert paths(out(workspace, store, ".")) == ["a", "b/.jobqueue/x", "b/c"]


def test_to_repeat_it_is_harmless(workspace: Path, store: Store) -> None:
    write(workspace, "outputs/a")
    assert out(workspace, store) == out(workspace, store)


@pytest.mark.security_case("symlink outputs")
def test_links_are_never_followed(workspace: Path, store: Store, secret: Path) -> None:
    """Outputs that are links: to a file or folder of the node, to `/proc/self/environ`, to `/`, to themselves.

    Refused: no link is followed, wherever it leads; it is left out, and named.
    Evidence: the manifest, and no byte of the node's own file in the store.
    """
    write(workspace, "outputs/real/file")
    for name, target in {
        "absolute": "/etc/passwd", "relative": "../../../secrets/key", "folder": str(secret), "self": "self",
        "process": "/proc/self/environ", "inside": "real/file", "root": "/",
    }.items():  # fmt: skip
        (workspace / "outputs" / name).symlink_to(target)
    manifest = out(workspace, store)
    assert paths(manifest) == ["outputs/real/file"]
    assert len(manifest.left_out) == 7
    assert all(line.endswith(": it is a link, or lies behind one") for line in manifest.left_out)
    assert "the node's own" not in str([b"".join(store.get(found.key)) for found in store.list("")])


@pytest.mark.security_case("symlink outputs")
def test_a_link_on_the_way_to_a_named_output_is_not_followed(workspace: Path, store: Store, secret: Path) -> None:
    """A folder on the way to an output that is a link to a folder of the node, `outputs` itself too.

    Refused: a path is opened one name at a time, and none of them may be a link.
    Evidence: nothing but the manifest is in the store.
    """
    (workspace / "metrics").symlink_to(secret)
    (workspace / "model.pt").symlink_to(secret / "key")
    (workspace / "outputs").rmdir()
    (workspace / "outputs").symlink_to(secret)
    write(secret, "result.json")
    manifest = out(workspace, store, "metrics/key", "metrics/", "model.pt", "outputs/")
    assert manifest.files == ()
    assert [found.key for found in store.list("")] == [manifest_key(PREFIX)]
    assert len(manifest.left_out) == 5


def test_a_workspace_that_became_a_link_is_not_followed(workspace: Path, store: Store, secret: Path) -> None:
    (workspace / "outputs").rmdir()
    workspace.rmdir()
    workspace.symlink_to(secret)
    with pytest.raises(NotADirectoryError):
        out(workspace, store, ".")


@pytest.mark.security_case("output that is a pipe, socket or device")
@pytest.mark.timeout(20)
def test_pipes_sockets_and_devices_are_left_out_without_waiting(workspace: Path, store: Store) -> None:
    """Outputs that are a pipe without a writer, a socket, or a device, `result.json` too.

    Refused: what is no file or folder is left out; nobody waits for the other end of a pipe.
    Evidence: the manifest names each, and the test does not hang.
    """
    os.mkfifo(workspace / "outputs" / "pipe")
    os.mkfifo(workspace / "outputs" / "result.json")
    os.mknod(workspace / "outputs" / "socket", stat.S_IFSOCK | 0o600)
    write(workspace, "outputs/file")
    manifest = out(workspace, store)
    assert paths(manifest) == ["outputs/file"]
    assert manifest.left_out == (
        "outputs/pipe: it is no file or folder",
        "outputs/result.json: it is no file or folder",
        "outputs/socket: it is no file or folder",
    )


@pytest.mark.security_case("sparse output")
def test_a_sparse_bomb_is_left_out_and_an_honest_sparse_file_is_not(workspace: Path, store: Store) -> None:
    """An output that says it has a terabyte, and takes no room on the disk.

    Refused: what is over `disk=`, and what is almost only a hole, is left out.
    Evidence: the manifest names it with its size; an honest file with holes is stored.
    """
    for name, size_bytes in (("bomb", 900 * MEBIBYTE), ("tebibyte", 1 << 40)):
        with (workspace / "outputs" / name).open("wb") as file:
            file.truncate(size_bytes)
    with (workspace / "outputs" / "honest").open("wb") as file:
        file.write(os.urandom(MEBIBYTE))
        file.truncate(4 * MEBIBYTE)
    manifest = out(workspace, store)
    assert paths(manifest) == ["outputs/honest"]
    assert manifest.left_out == (
        "outputs/bomb: it says it has 900 MiB, but almost all of it is a hole",
        "outputs/tebibyte: it says it has 1 TiB, but almost all of it is a hole",
    )


def test_more_than_the_disk_is_left_out_and_smaller_files_still_fit(workspace: Path, store: Store) -> None:
    write(workspace, "outputs/a", content=b"x" * 600)
    write(workspace, "outputs/b", content=b"x" * 600)
    write(workspace, "outputs/c", content=b"x" * 400)
    manifest = out(workspace, store, disk=1000)
    assert paths(manifest) == ["outputs/a", "outputs/c"]
    assert manifest.left_out == ("outputs/b: with its 600 B the outputs are larger than disk=",)


@pytest.mark.security_case("a million outputs")
def test_more_files_than_the_limit_are_left_out(workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """More files than anybody could want, to keep the node busy.

    Refused: no more names are looked at than the bound says; the rest is left out.
    Evidence: how many are stored, and the line that tells of the rest.
    """
    monkeypatch.setattr("workers.attempt.outputs.MAX_TREE_ENTRIES", 50)
    write(workspace, *(f"outputs/{number:03d}" for number in range(80)))
    manifest = out(workspace, store)
    assert len(set(paths(manifest))) == 50
    assert manifest.left_out == ("outputs: there are more than 50 files and folders, the rest is left out",)


def test_a_flood_of_empty_folders_is_bounded(workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.attempt.outputs.MAX_TREE_ENTRIES", 50)
    for number in range(80):
        (workspace / "outputs" / f"{number:03d}" / "below").mkdir(parents=True)
    assert "more than 50" in out(workspace, store).left_out[0]


@pytest.mark.security_case("a million outputs")
def test_folders_that_are_too_deep_are_left_out(workspace: Path, store: Store) -> None:
    """Folders in folders in folders, to exhaust the walk.

    Refused: what lies more than 32 folders deep is left out.
    Evidence: the manifest names the folder; what lies beside it is stored.
    """
    (workspace / "outputs").joinpath(*["d"] * 200).mkdir(parents=True)
    write(workspace, "outputs/a")
    manifest = out(workspace, store)
    assert paths(manifest) == ["outputs/a"]
    assert len(manifest.left_out) == 1
    assert manifest.left_out[0].endswith("it lies more than 32 folders deep")


@pytest.mark.security_case("terminal escapes in output names")
def test_names_that_no_store_takes_are_left_out_and_can_be_printed(workspace: Path, store: Store) -> None:
    """Outputs whose names drive a terminal, forge a line of a log, are no text, or are too long.

    Refused: such a name is left out, and told of in a form that can be printed.
    Evidence: every line of the manifest is printable, and it can be read again.
    """
    for name in (b"a\xff", b"b\n::jobqueue::", b"c\x1b[2J", b"d" * 255):
        (workspace / "outputs" / os.fsdecode(name)).write_text("")
    long = workspace / "outputs" / ("e" * 250) / ("f" * 250) / ("g" * 250) / ("h" * 250)
    long.mkdir(parents=True)
    (long / "file").write_text("")
    manifest = out(workspace, store)
    assert paths(manifest) == ["outputs/" + "d" * 255]
    assert len(manifest.left_out) == 4
    assert all(line.isprintable() for line in manifest.left_out)
    assert "is not UTF-8" in manifest.left_out[0]
    assert load_manifest(store, PREFIX) == manifest


def test_what_is_left_out_is_listed_up_to_a_bound(workspace: Path, store: Store) -> None:
    for number in range(1200):
        (workspace / "outputs" / f"{number:04d}").symlink_to("nothing")
    manifest = out(workspace, store)
    assert len(manifest.left_out) == 1001
    assert manifest.left_out[-1] == "and 200 more"


def test_a_file_without_rights_does_not_stop_the_others(
    workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workspace, "outputs/closed", "outputs/open")
    opened = os.open

    def refuse(path: object, *rest: object, **options: object) -> int:
        if path == "closed":
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    manifest = out(workspace, store)
    assert paths(manifest) == ["outputs/open"]
    assert manifest.left_out == ("outputs/closed: it cannot be read: Permission denied",)


def test_a_store_that_fails_leaves_no_manifest(workspace: Path, tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    store.put(output_key(PREFIX, "x"), b"")
    (tmp_path / "store" / PREFIX / "outputs" / "outputs").write_text("in the way")
    write(workspace, *(f"outputs/{number}" for number in range(20)))
    with pytest.raises(StoreUnavailable):
        out(workspace, store)
    with pytest.raises(NotFound):
        load_manifest(store, PREFIX)


def test_no_descriptor_is_left_open(workspace: Path, store: Store) -> None:
    write(workspace, *(f"outputs/{number}/{number}" for number in range(30)))
    (workspace / "outputs" / "link").symlink_to("nothing")
    out(workspace, store)
    before = len(list(Path("/proc/self/fd").iterdir()))
    out(workspace, store, "model.pt", "outputs/")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
