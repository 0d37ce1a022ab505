"""How fast a workspace goes from a producer's disk through the store to a worker's."""

import os
import random
import shutil
import tarfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import zstandard
from services.images import BUSYBOX

from bench.results import Result, compare
from bench.sampling import interleave, seconds
from bench.servers import Servers
from jobqueue.spec import parse_spec
from jobqueue.storage import open_store
from producers.packaging import pack_workspace
from workers.attempt.input_cache import InputCache
from workers.attempt.workspace import stage_in

_ROUNDS = 3
_BYTES = 200 * 10**6
_FILES = 40
_LEVEL = 3


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """A folder that is packed again and again, and is never the same."""

    folder: Path
    size_bytes: int

    def change(self, number: int) -> None:
        (self.folder / "number").write_text(str(number))


def measure_artifact_throughput(servers: Servers) -> list[Result]:
    """Measure pack, upload and stage-in, against tar and zstd into a file and out of it."""
    tree = _make_tree(servers.folder / "tree", _BYTES // 10 if servers.is_quick else _BYTES)
    place, numbers = servers.folder / "artifacts", count()
    measures = {
        "ours": lambda: tree.size_bytes / 1e6 / seconds(lambda: _ours(tree, place, next(numbers))),
        "bare": lambda: tree.size_bytes / 1e6 / seconds(lambda: _bare(tree, place, next(numbers))),
    }
    samples = interleave(servers.rounds(_ROUNDS), measures)
    note = "tarfile and zstandard, packed and unpacked; no digest, no fsync, no check"
    return [compare("artifact_throughput", samples["ours"], samples["bare"], unit="MB/s", note=note)]


def _make_tree(folder: Path, size_bytes: int) -> _Tree:
    """Write files that compress to about a half, as code, text and weights together do."""
    source = random.Random(1)
    folder.mkdir()
    piece = size_bytes // _FILES
    for index in range(_FILES):
        (folder / f"part{index}").write_bytes(source.randbytes(piece // 2) + b"text " * (piece // 10))
    return _Tree(folder=folder, size_bytes=size_bytes)


def _ours(tree: _Tree, place: Path, number: int) -> None:
    tree.change(number)
    store = open_store((place / "store").as_uri(), endpoint="")
    artifact, _ = pack_workspace(tree.folder, store)
    spec = parse_spec({"image": BUSYBOX, "command": ["true"], "workspace": artifact})
    stage_in(spec, place / "attempt", store=store, cache=InputCache(folder=place / "cache", size_bytes=2**40))
    _empty(place)


def _bare(tree: _Tree, place: Path, number: int) -> None:
    tree.change(number)
    place.mkdir(exist_ok=True)
    archive = place / "tree.tar.zst"
    with (
        archive.open("wb") as packed,
        zstandard.ZstdCompressor(level=_LEVEL, threads=0).stream_writer(packed) as compressed,
        tarfile.open(fileobj=compressed, mode="w|") as tar,
    ):
        tar.add(tree.folder, arcname=".")
    with (
        archive.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file) as content,
        tarfile.open(fileobj=content, mode="r|") as tar,
    ):
        tar.extractall(place / "out", filter="data")
    _empty(place)


def _empty(place: Path) -> None:
    shutil.rmtree(place)
    os.sync()
