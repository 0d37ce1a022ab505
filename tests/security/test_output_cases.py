"""Outputs that a hostile experiment leaves, while what is collected changes under the collector's hands."""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from jobqueue.artifacts import MAX_TREE_ENTRIES, Manifest
from jobqueue.spec import parse_spec
from jobqueue.storage import open_store
from jobqueue.storage.base import Store
from workers.attempt.workspace import stage_out

pytestmark = pytest.mark.security
PREFIX = "experiments/exp-01jd0000000000000000000000/attempts/1-1790000000123"
CANARY = b"canary of the node"
LARGE = 2 << 20
_ROUNDS = 30


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid4()}")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    outputs = tmp_path / "workspace" / "outputs"
    outputs.mkdir(parents=True)
    return outputs


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A folder of the node's own, with a file that no experiment may see."""
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "shadow").write_bytes(CANARY * (LARGE // len(CANARY)))
    return tmp_path / "node"


def collect(outputs: Path, store: Store) -> Manifest:
    spec = parse_spec({"image": "any", "command": "any", "disk": "1GiB"})
    return stage_out(spec, outputs.parent, store=store, prefix=PREFIX)


def stored(store: Store) -> dict[str, bytes]:
    return {found.key.partition("/outputs/outputs/")[2]: b"".join(store.get(found.key)) for found in store.list("")}


def to_link(outputs: Path, node: Path) -> None:
    (outputs / "other").symlink_to(node / "shadow")
    (outputs / "other").rename(outputs / "swapped")
    (outputs / "other").write_bytes(b"x" * LARGE)
    (outputs / "other").rename(outputs / "swapped")


def to_pipe(outputs: Path, _: Path) -> None:
    os.mkfifo(outputs / "other")
    (outputs / "other").rename(outputs / "swapped")
    (outputs / "other").write_bytes(b"x")
    (outputs / "other").rename(outputs / "swapped")


def folder_to_link(outputs: Path, node: Path) -> None:
    (outputs / "folder").mkdir()
    (outputs / "folder" / "shadow").write_bytes(b"x")
    (outputs / "folder" / "shadow").unlink()
    (outputs / "folder").rmdir()
    (outputs / "folder").symlink_to(node)
    (outputs / "folder").unlink()


@contextmanager
def swapping(swap: Callable[[Path, Path], None], outputs: Path, node: Path) -> Iterator[list[int]]:
    """Go on swapping on a thread; gives how often that was done."""
    ended, swaps = threading.Event(), [0]

    def go_on() -> None:
        while not ended.is_set():
            with suppress(FileNotFoundError, FileExistsError):
                swap(outputs, node)
            swaps[0] += 1

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield swaps
    finally:
        ended.set()
        thread.join()


@pytest.mark.security_case("symlink outputs")
@pytest.mark.parametrize("least", [30, pytest.param(10_000, marks=[pytest.mark.full, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("swap", [to_link, to_pipe, folder_to_link])
def test_what_is_swapped_while_it_is_collected_gives_nothing_away(
    swap: Callable[[Path, Path], None], least: int, outputs: Path, node: Path, store: Store
) -> None:
    """A file, or the folder around it, that turns into a link or a pipe and back while outputs are collected.

    Refused: what was opened is what is looked at and stored; a name is never opened twice for one decision.
    Evidence: over 10,000 swaps no byte of the node's file is in the store, and nobody waits for a pipe.
    """
    (outputs / "calm").write_bytes(b"calm")
    with swapping(swap, outputs, node) as swaps:
        done = 0
        while done < _ROUNDS or swaps[0] < least:
            collect(outputs, store)
            done += 1
            assert not any(CANARY in content for content in stored(store).values())
    assert stored(store)["calm"] == b"calm"


@pytest.mark.security_case("output named like a device")
def test_outputs_named_as_devices_are_files_and_devices_are_left_out(outputs: Path, store: Store) -> None:
    """Outputs that are called as devices are, of this system or others, and outputs that are devices.

    Refused: a device is never opened for its content; a name alone is nothing special.
    Evidence: files with such names are stored as they are; memory and disks by their numbers are left out, and named.
    """
    names = ["CON", "nul", "aux.txt", "dev/null", "dev/mem", "dev/sda", "LPT1", "-", "--help", "stdin", "fd/0"]
    for name in names:
        (outputs / name).parent.mkdir(exist_ok=True)
        (outputs / name).write_text(name)
    devices = {"null": (1, 3), "zero": (1, 5), "mem": (1, 1), "disk": (8, 0), "tty": (5, 0)}
    for name, numbers in devices.items():
        kind = stat.S_IFBLK if name == "disk" else stat.S_IFCHR
        os.mknod(outputs / f"device-{name}", kind | 0o666, os.makedev(*numbers))
    manifest = collect(outputs, store)
    assert {file.path.removeprefix("outputs/") for file in manifest.files} == set(names)
    assert {stored(store)[name].decode() for name in names} == set(names)
    assert len(manifest.left_out) == len(devices)
    assert all("it is no file or folder" in line or "cannot be read" in line for line in manifest.left_out)


@pytest.mark.security_case("outputs without rights")
def test_folders_without_rights_are_named_and_hinder_nothing(outputs: Path, store: Store) -> None:
    """Folders and files that nobody may read, so that collecting or removing them fails.

    Refused: what cannot be read is left out, and named; root reads it as any other.
    Evidence: what lies beside it is stored; the manifest has each of the others, stored or left out.
    """
    (outputs / "closed" / "below").mkdir(parents=True)
    (outputs / "closed" / "file").write_text("x")
    (outputs / "open").write_text("x")
    (outputs / "mute").write_text("x")
    for path in (outputs / "mute", outputs / "closed" / "below", outputs / "closed"):
        path.chmod(0)
    manifest = collect(outputs, store)
    (outputs / "closed").chmod(0o700)
    (outputs / "closed" / "below").chmod(0o700)
    assert "open" in stored(store)
    told = [file.path for file in manifest.files] + [line.partition(":")[0] for line in manifest.left_out]
    assert "outputs/mute" in told
    assert "outputs/closed/file" in told or "outputs/closed" in told


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.security_case("a million outputs")
def test_a_flood_of_files_costs_no_more_than_the_bound(outputs: Path, store: Store) -> None:
    """More than a hundred thousand files in one folder.

    Refused: of a folder no more names are read than may still be stored.
    Evidence: the bound is met exactly, and told; `test_workspace_outputs.py` has the same with a small bound.
    """
    for number in range(MAX_TREE_ENTRIES + 10_000):
        os.close(os.open(outputs / f"{number:06d}", os.O_CREAT | os.O_WRONLY))
    manifest = collect(outputs, store)
    assert len(manifest.files) == MAX_TREE_ENTRIES
    assert manifest.left_out == (
        f"outputs: there are more than {MAX_TREE_ENTRIES} files and folders, the rest is left out",
    )
