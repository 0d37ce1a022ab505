"""Two images made from what this machine has, so that no registry is asked.

`BUSYBOX` is a static busybox with a shell; `PYTHON` adds the Python that runs this, with its
standard library and the shared objects it needs. Their archives are kept in the user's cache
folder under a name that is a digest of what goes into them.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import docker

from services.process import find_program

BUSYBOX = "jobqueue-test/busybox:1"
PYTHON = "jobqueue-test/python:3"

_PREFIX = Path("/usr/local")
_PATH = f"PATH={_PREFIX}/bin:/bin"
_ACCOUNTS = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n"
_FOLDERS = {"tmp": 0o1777, "root": 0o755, "etc": 0o755, "proc": 0o755, "sys": 0o755, "dev": 0o755}
_WITHOUT = {
    *("site-packages", "dist-packages", "ensurepip", "lib2to3"),
    *("idlelib", "tkinter", "turtledemo", "test", "tests"),
}


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One file of an image: a source to copy, a text to write, or a link."""

    path: str
    source: Path | None = None
    text: str = ""
    link: str = ""


def load_images(client: docker.DockerClient) -> None:
    """Import both images into an engine, from archives that are made once per content."""
    for image, archive in make_archives().items():
        repository, tag = image.split(":")
        answer = client.api.import_image(
            src=str(archive), repository=repository, tag=tag, changes=[f"ENV {_PATH}", "WORKDIR /"]
        )
        if '"error"' in answer:
            raise RuntimeError(f"{image} from {archive}: {answer}")


def make_archives() -> dict[str, Path]:
    """Return the archive of each image's files, and make it where it is not there yet."""
    busybox = Path(find_program("busybox", package="busybox-static")).resolve()
    folder = _cache_folder() / _digest(busybox)
    archives = {BUSYBOX: folder / "busybox.tar", PYTHON: folder / "python.tar"}
    if not archives[BUSYBOX].exists():
        _write_archive(archives[BUSYBOX], _busybox_entries(busybox))
    if not archives[PYTHON].exists():
        _write_archive(archives[PYTHON], [*_busybox_entries(busybox), *_python_entries()])
    return archives


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jobqueue-tests"


def _digest(busybox: Path) -> str:
    python = _interpreter().stat()
    parts = (sys.version, _interpreter(), python.st_size, python.st_mtime_ns)
    digest = hashlib.sha256(repr(parts).encode())
    digest.update(busybox.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def _interpreter() -> Path:
    return Path(sys.base_prefix, "bin", f"python{sysconfig.get_python_version()}").resolve()


def _busybox_entries(busybox: Path) -> Iterator[_Entry]:
    yield _Entry(path="etc/passwd", text=_ACCOUNTS)
    yield _Entry(path="bin/busybox", source=busybox)
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for name in names.stdout.split():
        if name != "busybox":
            yield _Entry(path=f"bin/{name}", link="busybox")


def _python_entries() -> Iterator[_Entry]:
    interpreter = _interpreter()
    binaries = _PREFIX.relative_to("/") / "bin"
    yield _Entry(path=f"{binaries}/{interpreter.name}", source=interpreter)
    for name in ("python", "python3"):
        yield _Entry(path=f"{binaries}/{name}", link=interpreter.name)
    library = list(_library_files())
    stdlib = Path(sysconfig.get_path("stdlib"))
    for file in library:
        yield _Entry(path=str(binaries.parent / "lib" / file.relative_to(stdlib.parent)), source=file)
    objects = [interpreter, *(file for file in library if file.suffix == ".so")]
    for path in sorted(_shared_objects(objects)):
        # Where the loader looks for it, with the content of what may be a link.
        yield _Entry(path=path.lstrip("/"), source=Path(path).resolve())


def _library_files() -> Iterator[Path]:
    for folder, folders, files in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(name for name in folders if name not in _WITHOUT and not name.startswith("config-"))
        for name in sorted(files):
            if ".opt-" not in name and Path(folder, name).is_file():
                yield Path(folder, name)


def _shared_objects(objects: list[Path]) -> set[str]:
    """Return the paths that the loader opens for these programs and modules."""
    # It exits with 1 where one module lacks an object (tkinter without Tk, say): not our need.
    listing = subprocess.run(["ldd", *objects], capture_output=True, text=True, check=False)
    words = (line.split(" => ")[-1].split() for line in listing.stdout.splitlines())
    return {line[0] for line in words if line and line[0].startswith("/") and line[0][-1] != ":"}


def _write_archive(path: Path, entries: Iterator[_Entry] | list[_Entry]) -> None:
    """Write beside, then rename: several test runs may make the same archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    with tarfile.open(beside, "w") as archive:
        for name, mode in _FOLDERS.items():
            archive.addfile(_member(name, type=tarfile.DIRTYPE, mode=mode))
        for entry in entries:
            _add(archive, entry)
    beside.rename(path)


def _add(archive: tarfile.TarFile, entry: _Entry) -> None:
    if entry.link:
        archive.addfile(_member(entry.path, type=tarfile.SYMTYPE, linkname=entry.link))
        return
    content = entry.source.read_bytes() if entry.source else entry.text.encode()
    mode = entry.source.stat().st_mode & 0o777 if entry.source else 0o644
    archive.addfile(_member(entry.path, size=len(content), mode=mode), BytesIO(content))


def _member(name: str, **attributes: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    return member
