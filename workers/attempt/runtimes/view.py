"""What a sandbox shows of the machine's own files: programs and the worker's Python, and nothing of the node's."""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

TMP = "/tmp"  # noqa: S108 - the container's own

_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")
_SYSTEM_FILES = (
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ssl", "/etc/localtime"),
    *("/etc/ca-certificates", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/resolv.conf"),
)


def show_system() -> Iterator[str]:
    """Yield the sandbox's words for what programs need of the machine: no home, no state, no keys."""
    for folder in map(Path, _SYSTEM_FOLDERS):
        if folder.is_symlink():
            yield from ("--symlink", str(folder.readlink()), str(folder))
        elif folder.is_dir():
            yield from ("--ro-bind", str(folder), str(folder))
    yield from make_parents(Path("/etc/any"))
    for name in _SYSTEM_FILES:
        yield from ("--ro-bind-try", name, name)


def show_interpreter(hidden: Iterable[Path]) -> Iterator[str]:
    """Yield the words that show the Python that the worker runs on, and hide what is to be hidden.

    `python` in the sandbox is the worker's own, with its packages, wherever it lies: also within what is hidden.
    """
    prefixes = {prefix.resolve() for prefix in _prefixes()}
    covered = {path.resolve() for path in hidden} - prefixes
    made = []
    # Parents come before what lies in them.
    for path in sorted(prefixes | covered):
        is_seen = _is_seen(path, prefixes=prefixes - {path}, covered=covered - {path})
        if path in prefixes and not is_seen:
            yield from show(path, at=path)
        elif path in covered and is_seen and os.path.lexists(path):  # what this user cannot find, no experiment can
            if path.is_dir():
                made.append(path)
                yield from ("--perms", "0755", "--tmpfs", str(path))
            else:
                yield from ("--ro-bind", "/dev/null", str(path))
    for link, target in _find_links():
        if not _is_seen(link, prefixes=prefixes, covered=covered):
            yield from (*make_parents(link), "--symlink", str(target), str(link))
    for path in made:
        yield from ("--remount-ro", str(path))


def is_shown_whole(folder: Path) -> bool:
    """Tell whether a folder cannot be hidden, because the worker's Python is that very folder."""
    return folder.resolve() in {prefix.resolve() for prefix in _prefixes()}


def show(path: Path, *, at: Path) -> Iterator[str]:
    """Yield the words that show a file or folder, read-only."""
    yield from (*make_parents(at), "--ro-bind", str(path), str(at))


def make_parents(path: Path) -> Iterator[str]:
    """Yield the words that make the folders above: left to itself bubblewrap makes them for the owner alone."""
    for parent in reversed(path.parents[:-1]):
        if str(parent) != TMP:
            yield from ("--perms", "0755", "--dir", str(parent))


def _prefixes() -> set[Path]:
    return {Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}


def _find_links() -> Iterator[tuple[Path, Path]]:
    """Yield what leads by a link to the Python that is shown: its prefixes, and what its program is called."""
    prefixes = _prefixes()
    for prefix in sorted(prefixes):
        if prefix != prefix.resolve() and prefixes.isdisjoint(prefix.parents):
            yield prefix, prefix.resolve()
    hop = Path(sys.executable)
    while hop.is_symlink():
        target = hop.parent / hop.readlink()
        if prefixes.isdisjoint(hop.parents):
            yield hop, target
        hop = target


def _is_seen(path: Path, *, prefixes: set[Path], covered: set[Path]) -> bool:
    """Tell whether a path is shown, where what lies nearest above it decides."""
    for place in (path, *path.parents):
        if place in covered or place in prefixes:
            return place in prefixes
        if str(place) in (*_SYSTEM_FOLDERS, *_SYSTEM_FILES):
            return True
    return False
