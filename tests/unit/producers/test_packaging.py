"""A folder becomes one artifact for one content, with nothing in it that should not travel."""

import errno
import io
import os
import shutil
import stat
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
import zstandard

from jobqueue.artifacts import Artifact
from jobqueue.errors import InvalidSpec, StoreUnavailable
from jobqueue.storage import locate, open_store
from jobqueue.storage.base import Store
from producers import packaging
from producers.packaging import check_input, check_workspace, pack_workspace, upload_input
from producers.packaging.ignoring import MAX_KEY_BYTES, holds_key

OLD = 1_700_000_000
MEBIBYTE = 1 << 20


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid4()}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my work"
    folder.mkdir()
    return folder


def fill(folder: Path, **files: str) -> None:
    write(folder, files)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def members(artifact: Artifact, store: Store) -> dict[str, tarfile.TarInfo]:
    content = io.BytesIO(b"".join(locate(artifact.uri, default=store)[0].get(artifact.uri.removeprefix("store:"))))
    plain = zstandard.ZstdDecompressor().stream_reader(content).read()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return {member.name: member for member in archive.getmembers()}


def files(folder: Path, store: Store) -> list[str]:
    artifact, _ = pack_workspace(folder, store)
    return [name for name, member in members(artifact, store).items() if member.isfile()]


def problems(folder: Path) -> str:
    return "\n".join(str(problem) for problem in check_workspace(folder).problems)


def test_the_same_content_is_the_same_artifact_whatever_the_times_and_owners(tmp_path: Path, store: Store) -> None:
    for name, mode, mtime in (("one", 0o600, 1), ("two", 0o664, 2_000_000_000)):
        write(tmp_path / name, {"b.py": "b", "a/ü.txt": "ü", "a-b": "", "run.sh": "#!"})
        for path in (tmp_path / name).rglob("*"):
            if path.is_file():
                path.chmod(mode | (0o100 if path.name == "run.sh" else 0))
                os.utime(path, (mtime, mtime))
    one, two = (pack_workspace(tmp_path / name, store)[0] for name in ("one", "two"))
    assert one == two
    assert one.uri == f"store:workspaces/{one.sha256}.tar.zst"
    assert one.unpacked_bytes == 5
    found = members(one, store)
    assert list(found) == sorted(found) == ["a", "a-b", "a/ü.txt", "b.py", "run.sh"]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in found.values()} == {(0, 0, "", "", 0)}
    assert [m.mode for m in found.values()] == [0o755, 0o644, 0o644, 0o644, 0o755]


def test_other_content_names_and_rights_to_execute_make_other_artifacts(folder: Path, store: Store) -> None:
    seen = set()
    path = folder / "a"
    for change in (
        lambda: path.write_text("1"),
        lambda: path.write_text("2"),
        lambda: path.chmod(0o755),
        lambda: path.rename(folder / "b"),
        (folder / "empty").mkdir,
    ):
        change()
        seen.add(pack_workspace(folder, store)[0].sha256)
    assert len(seen) == 5


def test_an_empty_folder_is_an_archive_too(folder: Path, store: Store) -> None:
    artifact, warnings = pack_workspace(folder, store)
    assert members(artifact, store) == {}
    assert warnings == []
    assert artifact.size_bytes == store.size(artifact.uri.removeprefix("store:"))


def test_empty_folders_travel(folder: Path, store: Store) -> None:
    (folder / "outputs" / "deep").mkdir(parents=True)
    assert list(members(pack_workspace(folder, store)[0], store)) == ["outputs", "outputs/deep"]


@pytest.mark.parametrize("path", ["missing", "file", "file/below", "nul\0", "loop"])
def test_a_folder_that_is_none_is_a_wrong_field(tmp_path: Path, store: Store, path: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InvalidSpec) as raised:
        pack_workspace(tmp_path / path, store)
    assert [problem.path for problem in raised.value.problems] == ["workspace"]
    assert "folder" in problems(tmp_path / path)


def test_a_link_to_the_folder_is_the_folder(folder: Path, store: Store, tmp_path: Path) -> None:
    fill(folder, a="1")
    (tmp_path / "link").symlink_to(folder)
    assert files(tmp_path / "link", store) == ["a"]


def test_ignore_files_are_honoured_nested_ones_too(folder: Path, store: Store) -> None:
    write(
        folder,
        {
            ".gitignore": "*.log\n/data/\n!keep.log\n# comment\n\nbuild\n",
            ".jobqueueignore": "*.tmp\n!important.tmp\n!debug.log\n",
            "sub/.gitignore": "!sub.log\nonly-here\n/rooted\n",
            "sub/deeper/.jobqueueignore": "*\n!kept\n!.jobqueueignore\n",
        }
        | dict.fromkeys(
            ("a.log", "keep.log", "debug.log", "a.tmp", "important.tmp", "data/x", "other/data/x", "build/x",
             "only-here", "sub/sub.log", "sub/other.log", "sub/only-here", "sub/rooted", "sub/x/rooted",
             "sub/build", "sub/deeper/a", "sub/deeper/kept", "rooted", "ünïcode.log"), "x",
        ),
    )  # fmt: skip
    assert files(folder, store) == [
        ".gitignore", ".jobqueueignore", "debug.log", "important.tmp", "keep.log", "only-here", "other/data/x",
        "rooted", "sub/.gitignore", "sub/deeper/.jobqueueignore", "sub/deeper/kept", "sub/sub.log", "sub/x/rooted",
    ]  # fmt: skip


def test_the_repository_around_the_workspace_is_heard(tmp_path: Path, store: Store) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "*.csv\n",
            "repo/.git/HEAD": "",
            "repo/.gitignore": "*.log\n/sub/work/rooted\n/other\ndata/\n",
            "repo/sub/.gitignore": "!keep.log\n",
            "repo/sub/work/.gitignore": "*.tmp\n",
        },
    )
    work = tmp_path / "repo" / "sub" / "work"
    fill(work, **dict.fromkeys(("a.log", "keep.log", "rooted", "other", "data/x", "b.tmp", "c.csv", "src/d.log"), ""))

    assert files(work, store) == [".gitignore", "c.csv", "keep.log", "other"]
    assert files(work.parent, store) == [".gitignore", "work/.gitignore", "work/c.csv", "work/keep.log", "work/other"]


def test_a_folder_that_its_repository_leaves_out_is_packed_when_it_is_the_workspace(
    tmp_path: Path, store: Store
) -> None:
    write(tmp_path, {".git/HEAD": "", ".gitignore": "/build/\n", "build/out/a": ""})

    assert files(tmp_path / "build", store) == ["out/a"]
    assert files(tmp_path / "build" / "out", store) == ["a"]


def test_an_ignore_file_that_cannot_be_understood_is_named(folder: Path) -> None:
    write(folder, {"sub/.gitignore": "!\n"})
    assert "sub/.gitignore cannot be used" in problems(folder)


def test_an_ignore_file_with_a_mark_of_its_encoding_is_honoured_from_its_first_line_on(
    folder: Path, store: Store
) -> None:
    (folder / ".jobqueueignore").write_text("data.csv\n", encoding="utf-8-sig")
    (folder / "data.csv").touch()
    assert files(folder, store) == [".jobqueueignore"]


def test_a_workspace_may_lie_in_a_folder_whose_name_is_no_text(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / os.fsdecode(b"h\xffme")
    folder.mkdir()
    (folder / "a").touch()
    assert pack_workspace(folder, store)[1] == []


def test_what_tools_make_stays_here_without_a_word(folder: Path, store: Store) -> None:
    for name in (".git", "__pycache__", ".venv", "node_modules", ".ipynb_checkpoints"):
        write(folder, {f"{name}/x": "", f"sub/{name}/x": ""})
    write(folder, {"a.py": ""})
    artifact, warnings = pack_workspace(folder, store)
    assert list(members(artifact, store)) == ["a.py", "sub"]
    assert warnings == []


def test_what_looks_like_a_secret_stays_here_and_is_named(folder: Path, store: Store) -> None:
    secrets = [
        ".env",
        ".env.local",
        "KEY.PEM",
        "sub/id_rsa",
        "sub/.git-credentials",
        ".ssh/known",
        "id_ed25519",
        ".netrc",
    ]
    write(folder, dict.fromkeys([*secrets, ".env.example", "environment.py"], "x"))
    artifact, warnings = pack_workspace(folder, store)
    assert set(members(artifact, store)) == {".env.example", "environment.py", "sub"}
    assert len(warnings) == 1
    for name in (".env", ".env.local", "KEY.PEM", "sub/id_rsa", "sub/.git-credentials", ".ssh", "id_ed25519", ".netrc"):
        assert name in warnings[0]
    assert ".jobqueueignore" in warnings[0]


def test_why_a_file_is_left_out_is_told(folder: Path, store: Store) -> None:
    key = "-----BEGIN {} KEY-----".format("PRIVATE")
    write(folder, {"fixture.pem": "", "test_tls.py": f'KEY = """\n{key}\n"""', "sign.py": f'HEAD = "{key}"'})
    artifact, warnings = pack_workspace(folder, store)
    assert list(members(artifact, store)) == ["sign.py"]
    assert "fixture.pem, which look like secrets by their names" in warnings[0]
    assert "test_tls.py, which have a line that looks like a private key" in warnings[1]


@pytest.mark.parametrize("content", ["\n" * MAX_KEY_BYTES, "url=https://" + "a" * (MAX_KEY_BYTES - 12), " \t" * 30000])
def test_a_file_is_searched_for_keys_in_no_time_whatever_is_in_it(content: str, folder: Path) -> None:
    (folder / "blank").write_text(content)
    began = time.process_time()
    assert not holds_key(folder / "blank")
    assert time.process_time() - began < 2  # half a minute, when each blank was tried from each line


def test_a_secret_that_is_asked_for_travels(folder: Path, store: Store) -> None:
    write(folder, {".env": "", "a.pem": "", ".jobqueueignore": "!.env\n", ".gitignore": "!a.pem\n"})
    assert files(folder, store) == [".env", ".gitignore", ".jobqueueignore"]


def test_links_inside_are_packed_as_what_they_lead_to(folder: Path, store: Store) -> None:
    write(folder, {"data/a": "content", "data/deep/b": "b"})
    (folder / "file").symlink_to("data/a")
    (folder / "absolute").symlink_to(folder / "data" / "a")
    (folder / "chain").symlink_to("file")
    (folder / "tree").symlink_to("data/deep")
    artifact, warnings = pack_workspace(folder, store)
    found = members(artifact, store)
    assert all(member.isfile() or member.isdir() for member in found.values())
    assert {name for name, member in found.items() if member.isfile()} == {
        "absolute", "chain", "data/a", "data/deep/b", "file", "tree/b",
    }  # fmt: skip
    assert found["chain"].size == 7
    assert warnings == []


def test_links_that_lead_nowhere_out_or_round_are_left_out_and_named(
    folder: Path, store: Store, tmp_path: Path
) -> None:
    write(folder, {"a/b/file": "x", ".env": "secret"})
    (tmp_path / "outside").write_text("secret")
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "up").symlink_to("..")
    (folder / "broken").symlink_to("nothing")
    (folder / "self").symlink_to("self")
    (folder / "a" / "b" / "round").symlink_to("../..")
    (folder / "dot").symlink_to(".")
    (folder / "sly").symlink_to(".env")
    artifact, warnings = pack_workspace(folder, store)
    assert list(members(artifact, store)) == ["a", "a/b", "a/b/file"]
    assert len(warnings) == 2
    for name in ("out", "up", "broken", "self", "a/b/round", "dot", "sly"):
        assert name in warnings[1]


def test_links_that_multiply_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producers.packaging.scanning.MAX_TREE_ENTRIES", 500)
    for level in range(20):
        (folder / f"{level}").mkdir()
        for side in "lr":
            (folder / f"{level}" / side).symlink_to(f"../{level + 1}")
    (folder / "20").mkdir()
    assert "more than 500 files and folders" in problems(folder)


def test_sockets_and_pipes_are_left_out_and_named(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, a="")
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    artifact, warnings = pack_workspace(folder, store)
    assert list(members(artifact, store)) == ["a"]
    assert len(warnings) == 1
    assert "pipe, socket" in warnings[0]


def test_an_ignore_file_that_is_no_file_is_not_read(folder: Path) -> None:
    os.mknod(folder / ".gitignore", stat.S_IFSOCK | 0o600)
    assert problems(folder) == ""
    os.mkfifo(folder / ".jobqueueignore")
    assert problems(folder) == ""


@pytest.mark.parametrize(
    ("name", "fault"), [(b"a\xff", "not UTF-8"), (b"a\nb", "control character"), (b"a\x1b[0m", "control character")]
)
def test_names_that_not_every_machine_has_are_wrong(folder: Path, name: bytes, fault: str) -> None:
    (folder / os.fsdecode(name)).write_text("")
    (folder / os.fsdecode(name + b"2")).write_text("")
    assert problems(folder).count(fault) == 2
    assert problems(folder).isprintable() or "\n" in problems(folder)
    assert problems(folder).encode()


def test_a_name_can_be_ignored_away(folder: Path, store: Store) -> None:
    (folder / "bad\nname").write_text("")
    write(folder, {".jobqueueignore": "bad*\n"})
    assert files(folder, store) == [".jobqueueignore"]


def test_folders_that_are_too_deep_are_wrong(folder: Path) -> None:
    folder.joinpath(*["d"] * 40).mkdir(parents=True)
    assert "32 folders deep" in problems(folder)
    assert problems(folder).count("deep") == 1


def test_many_problems_are_told_at_once_but_not_endlessly(folder: Path) -> None:
    for number in range(30):
        (folder / f"{number}\n").write_text("")
    assert len(check_workspace(folder).problems) == 11
    assert "and 20 more" in problems(folder)


def test_what_cannot_be_read_is_named(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, secret="x")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InvalidSpec, match="secret cannot be packed: Permission denied"):
        packaging.write_archive(
            packaging.scan(folder, field="w", honours_ignores=True).entries, io.BytesIO(), field="w"
        )


def _grow(path: Path) -> None:
    path.write_text("longer than before")


def _shrink(path: Path) -> None:
    path.write_text("")


def _touch(path: Path) -> None:
    path.write_text("other")


def _replace(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.write_text("first")


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [_grow, _shrink, _touch, _replace, _link, _pipe, Path.unlink])
def test_a_file_that_changes_meanwhile_is_named(
    folder: Path, store: Store, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, a="first")
    scan = packaging.scan

    def scan_then_change(*arguments: object, **options: object) -> object:
        found = scan(*arguments, **options)  # type: ignore[arg-type]
        change(folder / "a")
        return found

    monkeypatch.setattr(packaging, "scan", scan_then_change)
    with pytest.raises(InvalidSpec, match=r"a (changed while it was packed|cannot be packed)"):
        pack_workspace(folder, store)
    assert list(store.list("")) == []


def test_a_file_that_grows_while_it_is_read_is_named(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "log").write_bytes(os.urandom(4 * MEBIBYTE))
    copy = tarfile.copyfileobj

    def copy_and_append(source: object, target: object, *rest: object, **options: object) -> None:
        copy(source, target, *rest, **options)  # type: ignore[arg-type]
        with (folder / "log").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(tarfile, "copyfileobj", copy_and_append)
    with pytest.raises(InvalidSpec, match="log changed while it was packed"):
        pack_workspace(folder, store)


class Counting:
    """A store that counts what is asked of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.puts = 0

    def put(self, key: str, source: bytes | Path) -> None:
        self.puts += 1
        self.store.put(key, source)

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)


def test_an_archive_that_is_there_is_not_uploaded_again(folder: Path, store: Store) -> None:
    counting = Counting(store)
    fill(folder, a="1")
    first, _ = pack_workspace(folder, counting)  # type: ignore[arg-type]
    os.utime(folder / "a", (1, 1))
    second, _ = pack_workspace(folder, counting)  # type: ignore[arg-type]
    assert first == second
    assert counting.puts == 1


def _settled(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (OLD, OLD))


def test_an_unchanged_folder_is_not_read_again(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, a="1")
    _settled(folder)
    first, _ = pack_workspace(folder, store)
    monkeypatch.setattr(packaging, "write_archive", None)
    assert pack_workspace(folder, store)[0] == first


def test_an_unchanged_folder_is_packed_again_for_another_store(folder: Path, store: Store) -> None:
    fill(folder, a="1")
    _settled(folder)
    first, _ = pack_workspace(folder, store)
    other = open_store(f"memory://{uuid4()}")
    assert pack_workspace(folder, other)[0] == first
    assert members(first, other)


def test_a_change_that_leaves_size_and_time_alone_is_seen(folder: Path, store: Store) -> None:
    fill(folder, a="1")
    _settled(folder)
    first, _ = pack_workspace(folder, store)
    time.sleep(0.02)  # the file system's clock ticks
    fill(folder, a="2")
    _settled(folder)
    assert pack_workspace(folder, store)[0] != first


def test_a_folder_that_was_just_written_is_not_remembered(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging, "_packed", {})
    fill(folder, a="1")  # and perhaps again within the same tick
    pack_workspace(folder, store)
    assert not packaging._packed
    _settled(folder)
    pack_workspace(folder, store)
    assert len(packaging._packed) == 1


def test_a_large_workspace_is_warned_of_with_its_largest_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaging, "_LARGE_BYTES", 1000)
    (folder / "weights.bin").write_bytes(b"0" * 3000)
    fill(folder, a="1")
    (note,) = check_workspace(folder).notes
    assert "weights.bin (2.93 KiB)" in note


def test_of_too_many_files_nothing_is_read_and_the_folders_with_most_of_them_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> bool:
        raise AssertionError(path)

    monkeypatch.setattr("producers.packaging.scanning.MAX_TREE_ENTRIES", 50)
    monkeypatch.setattr("producers.packaging.scanning.holds_key", read)
    write(folder, {f"data/frames/a/{number}.png": "x" for number in range(40)} | {"code/train.py": "x", "README": "x"})
    write(folder, {f"runs/{number}": "x" for number in range(9)} | {"A": "x", "a": "differs in case alone"})
    assert problems(folder) == (
        "workspace: more than 50 files and folders, most of those seen in 'data/frames/' (41), './' (5), 'runs/' (2) "
        "(name a smaller folder, or list what is not needed in .jobqueueignore)"
    )


def test_what_cannot_be_read_comes_with_a_way_out_that_counts_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(place: str | Path = ".") -> object:
        if Path(place).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    (folder / "closed").mkdir()
    monkeypatch.setattr("producers.packaging.scanning.os.scandir", refuse)

    assert problems(folder).endswith("'closed/' cannot be read: Permission denied (list it in .jobqueueignore)")
    (problem,) = check_input(folder, field="inputs.data").problems  # where ignore files have no say
    assert problem.message.endswith("Permission denied (send a .tar that the experiment unpacks itself)")


def test_the_whole_machine_is_no_workspace() -> None:
    assert problems(Path("/")) == "workspace: '/' is the whole machine (name the folder that the program lies in)"


def test_a_sparse_file_passes_with_flat_memory(folder: Path, tmp_path: Path) -> None:
    with (folder / "sparse").open("wb") as file:
        file.truncate(512 * MEBIBYTE)
    store = open_store((tmp_path / "store").as_uri())
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_peak()
    artifact, warnings = pack_workspace(folder, store)
    assert _resident_peak() - before < 32 * MEBIBYTE
    assert artifact.unpacked_bytes == 512 * MEBIBYTE
    assert artifact.size_bytes < MEBIBYTE
    assert warnings == []


def _resident_peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("size", [1, MEBIBYTE])
def test_no_room_to_pack_is_said_as_such(
    size: int, folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(os.urandom(size))
    full = lambda buffering=-1, **_: open("/dev/full", "w+b", buffering=buffering)  # noqa: E731, PTH123, SIM115
    monkeypatch.setattr(packaging.tempfile, "NamedTemporaryFile", full)
    with pytest.raises(InvalidSpec, match=r"no room to pack it: No space left on device.*TMPDIR"):
        pack_workspace(folder, store)


def test_a_store_that_is_down_is_said_as_such(folder: Path, tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("")
    fill(folder, a="1")
    with pytest.raises(StoreUnavailable):
        pack_workspace(folder, store)


def test_an_input_file_is_uploaded_once_under_its_digest(tmp_path: Path, store: Store) -> None:
    counting = Counting(store)
    (tmp_path / "data.csv").write_bytes(b"1,2\n")
    (tmp_path / "copy").write_bytes(b"1,2\n")
    (tmp_path / "link").symlink_to("copy")
    for name in ("data.csv", "copy", "link"):
        artifact, _ = upload_input(tmp_path / name, counting)  # type: ignore[arg-type]
        assert artifact.uri == f"store:inputs/{artifact.sha256}"
        assert (artifact.size_bytes, artifact.is_tree) == (4, False)
    assert counting.puts == 1


def test_an_input_folder_travels_whole_but_for_secrets(folder: Path, store: Store) -> None:
    write(
        folder,
        {".gitignore": "*\n", "data/.env": "", ".git/x": "", "b.pem": "", ".jobqueueignore": "a\n!b.pem", "a": "1"},
    )
    artifact, warnings = upload_input(folder, store)
    assert artifact.is_tree
    assert artifact.uri.startswith("store:inputs/")
    assert list(members(artifact, store)) == [".git", ".git/x", ".gitignore", ".jobqueueignore", "a", "b.pem", "data"]
    assert "data/.env" in warnings[0]


def test_an_input_that_is_packed_already_stays_a_tree(tmp_path: Path, store: Store) -> None:
    (tmp_path / "cifar.tar.zst").write_bytes(zstandard.compress(b"\0" * 1024))
    assert upload_input(tmp_path / "cifar.tar.zst", store)[0].is_tree


@pytest.mark.parametrize("path", ["missing", "pipe", "nul\0"])
def test_an_input_that_is_no_file_is_a_wrong_field(tmp_path: Path, store: Store, path: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidSpec) as raised:
        upload_input(tmp_path / path, store, field="inputs.data")
    assert [problem.path for problem in raised.value.problems] == ["inputs.data"]


def test_an_input_that_changes_on_the_way_leaves_nothing_wrong_behind(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"first")

    class Changing(Counting):
        def put(self, key: str, source: bytes | Path) -> None:
            if not self.puts:
                path.write_bytes(b"other")
            super().put(key, source)

    with pytest.raises(InvalidSpec, match="data changed"):
        upload_input(path, Changing(store))  # type: ignore[arg-type]
    path.write_bytes(b"first")
    artifact, _ = upload_input(path, store)
    assert b"".join(store.get(artifact.uri.removeprefix("store:"))) == b"first"


def test_ten_thousand_files_are_packed_in_a_moment(folder: Path, store: Store) -> None:
    for number in range(100):
        (folder / f"{number}").mkdir()
        for file in range(100):
            (folder / f"{number}" / f"{file}").write_bytes(b"%d" % file)
    write(folder, {".gitignore": "*.log\n", "50/.gitignore": "data/\n"})
    began = time.process_time()
    artifact, _ = pack_workspace(folder, store)
    assert time.process_time() - began < 20
    assert len(members(artifact, store)) == 10_102


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    import subprocess

    heavy = ("zstandard", "pathspec", "obstore", "pydantic")
    code = f"import sys, producers.packaging; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
