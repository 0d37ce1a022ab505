"""Archives are unpacked as they were packed, and nothing that a hostile one asks for happens."""

import io
import os
import stat
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jobqueue.artifacts import fold_path
from jobqueue.errors import ArtifactRefused
from jobqueue.storage import locate, open_store
from producers.packaging import pack_workspace
from workers.attempt.archive import unpack

GIBIBYTE = 1 << 30
Fill = Callable[[tarfile.TarFile], None]


def entry(name: str, content: bytes = b"", **fields: object) -> Fill:
    def fill(archive: tarfile.TarFile) -> None:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        for field, value in fields.items():
            setattr(header, field, value)
        archive.addfile(header, io.BytesIO(content))

    return fill


def many(count: int) -> Fill:
    return lambda archive: [entry(f"{number}")(archive) for number in range(count)] and None


def packed(
    folder: Path, *fills: Fill, dialect: int = tarfile.GNU_FORMAT, tail: bytes = b"", cut: int | None = None
) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=dialect) as archive:
        for fill in fills:
            fill(archive)
    path = folder / "archive.tar.zst"
    path.write_bytes(zstandard.compress((plain.getvalue() + tail)[:cut]))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "outer").mkdir()
    target = tmp_path / "outer" / "target"
    target.mkdir()
    return target


@pytest.fixture
def few_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.attempt.archive.MAX_TREE_ENTRIES", 1000)


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
HOSTILE: dict[str, tuple[str, list[Fill]]] = {
    "an absolute name": ("/etc/cron.d/x", [entry("/etc/cron.d/x", b"x")]),
    "a name that leads out": (r"\.\./x", [entry("../x", b"x")]),
    "a name that leads out in the middle": (r"a/\.\./\.\./x", [entry("a/../../x", b"x")]),
    "a folder that leads out": (r"\.\.", [entry("..", type=tarfile.DIRTYPE)]),
    "a link out": ("link.*a link", [entry("link", **LINK)]),
    "a link inside": ("link.*a link", [entry("a"), entry("link", type=tarfile.SYMTYPE, linkname="a")]),
    "a file through a link": ("link", [entry("link", **LINK), entry("link/x", b"x")]),
    "a hard link": ("link.*a hard link", [entry("link", type=tarfile.LNKTYPE, linkname="/etc/passwd")]),
    "a long link": ("a link", [entry("link", type=tarfile.SYMTYPE, linkname="x" * 200)]),
    "a character device": ("dev.*a device", [entry("dev", type=tarfile.CHRTYPE, devmajor=1, devminor=5)]),
    "a block device": ("dev.*a device", [entry("dev", type=tarfile.BLKTYPE)]),
    "a pipe": ("pipe.*a pipe", [entry("pipe", type=tarfile.FIFOTYPE)]),
    "an unknown kind": ("odd.*unknown kind", [entry("odd", type=b"V")]),
    "a line end in a name": ("control character", [entry("a\nb", b"x")]),
    "an escape sequence in a name": ("control character", [entry("a\x1b[31mb", b"x")]),
    "a name that is not UTF-8": ("not UTF-8", [entry("a\udc80", b"x")]),
    "a name that is too long": ("255 bytes", [entry("x" * 256, b"x")]),
    "a path that is too long": ("2048 bytes", [entry("/".join(["x" * 250] * 9), b"x")]),
    "a folder that is too deep": ("32 folders deep", [entry("/".join("d" * 33), type=tarfile.DIRTYPE)]),
    "a very deep file": ("deep", [entry("/".join("d" * 900), b"x")]),
    "an empty part": ("empty", [entry("a//b", b"x")]),
    "the folder itself as a file": ("empty", [entry(".", b"x")]),
    "a file twice": ("comes twice", [entry("a", b"1"), entry("a", b"2")]),
    "a file as a folder": ("a file and a folder", [entry("a", b"1"), entry("a/b", b"2")]),
    "a folder as a file": ("a file and a folder", [entry("a/b", b"1"), entry("a", b"2")]),
    "two names but for case": ("differ in case", [entry("Data", b"1"), entry("dATA", b"2")]),
    "two folders but for case": ("'A' and 'a' differ in case", [entry("a/x", b"1"), entry("A/y", b"2")]),
    "two deep names but for case": ("'a/b/X' and 'a/B/x' differ", [entry("a/B/x", b"1"), entry("a/b/X", b"2")]),
    "two names but for how a letter is composed": ("differ in case", [entry("\u00e9", b"1"), entry("e\u0301", b"2")]),
    "two names but for a ligature": ("differ in case", [entry("stra\u00dfe", b"1"), entry("STRASSE", b"2")]),
    "a file and a folder but for case": ("differ in case", [entry("a", b"1"), entry("A/x", b"2")]),
    "a path longer than any resolver's": ("link", [
        entry("d" * 247, type=tarfile.DIRTYPE), entry("a", type=tarfile.SYMTYPE, linkname="d" * 247),
        entry("a/escape", type=tarfile.SYMTYPE, linkname="/".join([".."] * 40)), entry("a/escape/x", b"x")]),
    "a link by a long link's header": ("a link", [
        entry("link", type=tarfile.SYMTYPE, linkname="/etc/" + "x" * 300), entry("link", b"x")]),
    "folders of 1,000 levels": ("deep", [entry("/".join("d" * 1000), type=tarfile.DIRTYPE)]),
    "too many entries": ("1000 entries", [many(1001)]),
    "too many folders": ("1000 entries", [entry(f"{number}/a/b", type=tarfile.DIRTYPE) for number in range(334)]),
    "more than was said": ("unpacks to more", [entry("zeros", b"\0" * 3000)]),
}  # fmt: skip


@pytest.mark.security_case("tar traversal")
@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.usefixtures("few_entries")
def test_a_hostile_archive_is_refused_by_the_name_of_its_entry(what: str, tmp_path: Path, target: Path) -> None:
    """An archive whose entries lead out of their folder, or are more, longer, deeper or of another kind than files.

    Refused: by the first entry that breaks a rule, before anything of it is written; the links of known escapes too.
    Evidence: the error names the entry; nothing lies beside the folder, and no link in it.
    Red before: names that differ in case alone, or in how a letter is composed, were unpacked.
    """
    message, fills = HOSTILE[what]
    archive = packed(tmp_path, *fills, dialect=tarfile.PAX_FORMAT if "UTF-8" not in message else tarfile.GNU_FORMAT)
    declared = 2999 if what == "more than was said" else 0
    with pytest.raises(ArtifactRefused, match=message):
        unpack(archive, target, max_bytes=GIBIBYTE, declared_bytes=declared)
    assert {path.name for path in tmp_path.iterdir()} == {"archive.tar.zst", "outer"}
    assert list(target.parent.iterdir()) == [target]
    assert not any(path.is_symlink() for path in target.rglob("*"))


@pytest.mark.security_case("zstd bomb")
def test_a_bomb_is_refused_by_its_ratio_unless_its_size_was_declared(tmp_path: Path, target: Path) -> None:
    """A small archive that unpacks to very much.

    Refused: at 200 times its size, unless more was declared and the disk allows that.
    Evidence: nothing of it is written; the same archive is unpacked when its size was declared.
    """
    archive = packed(tmp_path, entry("zeros", b"\0" * (64 << 20)))
    with pytest.raises(ArtifactRefused, match=r"zeros.*unpacks to more"):
        unpack(archive, target, max_bytes=GIBIBYTE)
    assert not list(target.iterdir())
    assert unpack(archive, target, max_bytes=GIBIBYTE, declared_bytes=64 << 20) == 64 << 20


@pytest.mark.security_case("archive of long paths")
def test_what_was_unpacked_is_remembered_in_little_however_long_its_paths_are(tmp_path: Path, target: Path) -> None:
    """A small archive of thousands of folders in one another, of the longest paths allowed, with an emoji in each.

    Refused: it is unpacked, and what is remembered of a path does not grow with it.
    Evidence: memory at its highest while 3,000 folders are unpacked.
    Red before: 12 kB were kept of each folder, 1.2 GB for an archive of 22 kB.
    """
    chains = [entry("/".join([f"\U0001f600{number}"] + ["x" * 64] * 30), type=tarfile.DIRTYPE) for number in range(100)]
    archive = packed(tmp_path, *chains)
    tracemalloc.start()
    try:
        unpack(archive, target, max_bytes=GIBIBYTE)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_quota_counts_also_against_what_was_declared(tmp_path: Path, target: Path) -> None:
    archive = packed(tmp_path, entry("a", b"x" * 600), entry("b", b"x" * 600))
    with pytest.raises(ArtifactRefused, match=r"'b'.*more than 1000 B"):
        unpack(archive, target, max_bytes=1000, declared_bytes=1200)


def _header(name: str, size: int, kind: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.type = size, kind
    return header.tobuf(format=tarfile.GNU_FORMAT)


def _block(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 512)


RAW = {
    "no archive at all": (b"Hello" * 200, "not sound"),
    "an empty stream": (b"", "cut short"),
    "a header of 8 GiB": (_header("pax", 8 << 30, tarfile.XHDTYPE), "header of 8589934592 bytes"),
    "a long name of 1 GiB": (_header("name", 1 << 30, tarfile.GNUTYPE_LONGNAME), "header of"),
    "a content that ends early": (_header("a", 10_000, tarfile.REGTYPE) + b"x" * 100, "cut short"),
    "no end": (_header("a", 3, tarfile.REGTYPE) + _block(b"abc"), "cut short"),
    "a negative size": (_header("a", -5, tarfile.REGTYPE), "negative size"),
    "a sparse file": (_header("a", 5, tarfile.GNUTYPE_SPARSE), "sparse"),
    "records without a length": (_header("p", 9, tarfile.XHDTYPE) + _block(b"path=../x"), "extended header"),
    "records with a wrong length": (_header("p", 12, tarfile.XHDTYPE) + _block(b"999 path=../x\n"), "extended header"),
    "records with a huge length": (_header("p", 40, tarfile.XHDTYPE) + _block(b"9" * 39 + b" "), "extended header"),
    "a size in words": (_header("p", 12, tarfile.XHDTYPE) + _block(b"12 size=ten\n") + _block(b""), "extended header"),
    "a sparse file by its records": (_header("p", 22, tarfile.XHDTYPE) + _block(b"22 GNU.sparse.major=1\n"), "sparse"),
    "a path out by its records": (
        _header("p", 13, tarfile.XHDTYPE) + _block(b"13 path=../x\n") + _header("a", 0, tarfile.REGTYPE), r"\.\./x"),
    "a path with a NUL by its records": (
        _header("p", 12, tarfile.XHDTYPE) + _block(b"12 path=a\0b\n") + _header("a", 0, tarfile.REGTYPE), "control"),
    "something behind the end": (b"\0" * 1024 + b"more", "after its end"),
    "endless zeros behind the end": (b"\0" * (4 << 20), "after its end"),
    "a hundred megabytes of headers": (
        (_header("p", 1 << 16, tarfile.XHDTYPE) + b"65536 a=" + b"x" * 65_527 + b"\n") * 1600, "header of 65536 bytes"),
    "records of five bytes": (
        _header("p", 1 << 16, tarfile.XHDTYPE) + b"5 a=\n" * 13_107 + b"\0", "one record too many"),
    "a record of no length": (_header("p", 6, tarfile.XHDTYPE) + _block(b"0 a=b\n"), "extended header"),
    "headers without end": (_header("p", 0, tarfile.XHDTYPE) * 3001, "headers"),
}  # fmt: skip


@pytest.mark.security_case("broken archive")
@pytest.mark.parametrize("what", RAW)
@pytest.mark.usefixtures("few_entries")
def test_broken_bytes_are_refused(what: str, tmp_path: Path, target: Path) -> None:
    """An archive with headers that lie: sizes, lengths and records that are huge, negative, sparse, cut or without end.

    Refused: as soon as the header is read; all headers together have a bound, since nothing else counts them.
    Evidence: the error says what is wrong; nothing but what came before it is written.
    Red before: a gigabyte of headers out of a small archive kept a worker busy for hours.
    """
    content, message = RAW[what]
    archive = tmp_path / "archive.tar.zst"
    archive.write_bytes(zstandard.compress(content))
    with pytest.raises(ArtifactRefused, match=message):
        unpack(archive, target, max_bytes=GIBIBYTE, declared_bytes=GIBIBYTE)
    assert not list(target.iterdir()) or [path.name for path in target.iterdir()] == ["a"]


def test_what_is_not_compressed_as_we_do_is_refused(tmp_path: Path, target: Path) -> None:
    archive = tmp_path / "archive.tar.zst"
    for content in (
        b"\x1f\x8b" + b"x" * 100,
        zstandard.compress(b"x" * 10_000)[:-4],
        zstandard.compress(b"\0" * 1024) + b"junk",
    ):
        archive.write_bytes(content)
        with pytest.raises(ArtifactRefused):
            unpack(archive, target, max_bytes=GIBIBYTE)


@pytest.mark.security_case("zstd bomb")
def test_a_window_that_would_take_too_much_memory_is_refused(tmp_path: Path, target: Path) -> None:
    """An archive whose compression asks for a gigabyte of memory to be undone.

    Refused: a window of more than 128 MiB.
    Evidence: the error, before anything is unpacked.
    """
    archive = tmp_path / "archive.tar.zst"
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    archive.write_bytes(compressor.compress(b"\0" * 2048) + compressor.flush())
    with pytest.raises(ArtifactRefused, match="not sound"):
        unpack(archive, target, max_bytes=GIBIBYTE)


@pytest.mark.security_case("archive with setuid")
def test_set_user_id_bits_owners_and_masks_do_not_matter(tmp_path: Path, target: Path) -> None:
    """An archive with programs that run as their owner, root.

    Refused: of a mode only the right to execute is taken, of an owner nothing.
    Evidence: the modes of what was unpacked.
    """
    archive = packed(
        tmp_path, entry("tool", b"x", mode=0o6755, uid=0), entry("text", b"x", mode=0o000), entry("d/x", b"")
    )
    mask = os.umask(0o077)
    try:
        unpack(archive, target, max_bytes=GIBIBYTE)
    finally:
        os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()}
    assert modes == {"tool": 0o755, "text": 0o644, "d": 0o755}


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_other_tools_are_unpacked(tmp_path: Path, target: Path, dialect: int) -> None:
    long = "/".join(["d" * 60, "e" * 60, "f" * 60])
    fills = [entry(".", type=tarfile.DIRTYPE), entry("./", type=tarfile.DIRTYPE), entry("./a", b"1"), entry(long, b"2")]
    if dialect != tarfile.USTAR_FORMAT:
        fills.append(entry("ü" * 70, b"3"))
    fills.append(entry("dir/", type=tarfile.DIRTYPE))
    archive = packed(tmp_path, *fills, dialect=dialect, tail=b"\0" * 10_240)
    unpack(archive, target, max_bytes=GIBIBYTE)
    assert (target / "a").read_bytes() == b"1"
    assert (target / long).read_bytes() == b"2"
    assert dialect == tarfile.USTAR_FORMAT or (target / ("ü" * 70)).read_bytes() == b"3"
    assert (target / "dir").is_dir()


def test_several_frames_are_one_archive(tmp_path: Path, target: Path) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        entry("a", os.urandom(5000))(archive)
    content = plain.getvalue()
    path = tmp_path / "archive.tar.zst"
    path.write_bytes(zstandard.compress(content[:1000]) + zstandard.compress(content[1000:]))
    assert unpack(path, target, max_bytes=GIBIBYTE) == 5000


def test_a_full_disk_is_not_the_archives_fault(tmp_path: Path) -> None:
    archive = packed(tmp_path, entry("a", b"x"))
    with pytest.raises(FileNotFoundError):
        unpack(archive, tmp_path / "gone", max_bytes=GIBIBYTE)


_NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20
).filter(lambda name: name not in (".", "..") and not name.startswith(".git") and not name.endswith("ignore"))
_TREES = st.dictionaries(st.lists(_NAMES, min_size=1, max_size=4).map(tuple), st.binary(max_size=3000), max_size=12)


@settings(max_examples=60, deadline=None)
@given(_TREES)
def test_what_was_packed_comes_out_again(tree: dict[tuple[str, ...], bytes]) -> None:
    from producers.packaging.ignoring import is_never_wanted, looks_secret

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        source.mkdir()
        target.mkdir()
        expected, folded = {}, set[str]()
        for path, content in tree.items():
            if any(is_never_wanted(part) or looks_secret(part) for part in path):
                continue
            if any(fold_path("/".join(path[:end])) in folded for end in range(1, len(path) + 1)):
                continue
            folded |= {fold_path("/".join(path[:end])) for end in range(1, len(path) + 1)}
            try:
                source.joinpath(*path).parent.mkdir(parents=True, exist_ok=True)
                source.joinpath(*path).write_bytes(content)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue
            expected["/".join(path)] = content
        store = open_store(f"memory://{uuid4()}")
        artifact, _ = pack_workspace(source, store)
        _, key = locate(artifact.uri, default=store)
        archive = Path(folder, "archive")
        archive.write_bytes(b"".join(store.get(key)))
        total = unpack(archive, target, max_bytes=GIBIBYTE, declared_bytes=artifact.unpacked_bytes)
        files = [path for path in target.rglob("*") if path.is_file()]
        assert {str(path.relative_to(target)): path.read_bytes() for path in files} == expected
        assert total == artifact.unpacked_bytes == sum(map(len, expected.values()))
