"""What of a folder would be packed: its files and folders in order, what is wrong with them, and what is left out."""

import dataclasses
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobqueue.artifacts import MAX_TREE_DEPTH, MAX_TREE_ENTRIES, fold_path, path_fault
from jobqueue.errors import InvalidSpec, Problem
from producers.packaging.ignoring import (
    IGNORE_FILE,
    MAX_KEY_BYTES,
    Patterns,
    holds_key,
    is_asked_for,
    is_ignored,
    is_never_wanted,
    looks_secret,
    read_patterns,
    read_patterns_above,
)
from producers.packaging.weighing import name_largest

_NAMED: Final = 10


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file or folder of the archive.

    Attributes:
        path: in the archive.
        source: on disk; elsewhere in the workspace when a link led there.
        identity: what tells a file that changed: size, times, mode, inode.
    """

    path: str
    source: Path
    is_folder: bool
    size_bytes: int
    is_executable: bool
    modified_ns: int
    identity: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What was found; its lists are filled while walking.

    Attributes:
        field: the field of the spec that names the folder, for the problems.
        honours_ignores: ignore files and the lists of what is never wanted count; what looks like a secret always does.
        unread: the entries that are still to be looked into for keys.
        folded: the paths by what they are where case does not count.
    """

    root: Path
    field: str
    honours_ignores: bool
    entries: list[Entry] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    secrets: list[str] = dataclasses.field(default_factory=list)
    keys: list[str] = dataclasses.field(default_factory=list)
    links: list[str] = dataclasses.field(default_factory=list)
    specials: list[str] = dataclasses.field(default_factory=list)
    unread: list[Entry] = dataclasses.field(default_factory=list)
    folded: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """What the files come to before they are packed."""
        return sum(entry.size_bytes for entry in self.entries)

    @property
    def problems(self) -> list[Problem]:
        """Everything wrong at once, up to a number that one can read."""
        shown = [Problem(path=self.field, message=fault) for fault in self.faults[:_NAMED]]
        if len(self.faults) > _NAMED:
            shown.append(Problem(path=self.field, message=f"and {len(self.faults) - _NAMED} more like these"))
        return shown

    @property
    def warnings(self) -> list[str]:
        """What is left out, by the reason."""
        way_out = f"(write !NAME into {IGNORE_FILE} to send them, or use secrets=)"
        reasons = (
            (self.secrets, f"look like secrets by their names {way_out}"),
            (self.keys, f"have a line that looks like a private key or a password {way_out}"),
            (self.links, "are links that are broken, lead out of the folder, or into a folder around them"),
            (self.specials, "are no files or folders, but sockets, pipes or devices"),
        )
        return [f"left out of the {self.field}: {_some(names)}, which {reason}" for names, reason in reasons if names]


def scan(root: Path, *, field: str, honours_ignores: bool) -> Scan:
    """Walk `root` and return what of it would be packed, sorted by path; no file is read before all are counted.

    Raises:
        InvalidSpec: there is no such folder.
    """
    try:
        resolved = root.expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        message = f"no such folder: {str(root)!r:.200} (name one that is there)"
        raise InvalidSpec([Problem(path=field, message=message)]) from None
    if not resolved.is_dir():
        message = f"not a folder: {str(root)!r:.200} (name the folder it lies in)"
        raise InvalidSpec([Problem(path=field, message=message)])
    if resolved == Path(resolved.anchor):
        message = f"{str(root)!r:.200} is the whole machine (name the folder that the program lies in)"
        raise InvalidSpec([Problem(path=field, message=message)])
    found = Scan(root=resolved, field=field, honours_ignores=honours_ignores)
    above = read_patterns_above(resolved) if honours_ignores else ()
    try:
        _walk(found, _Place(folder=resolved, relative="", patterns=above, around=frozenset()))
    except _TooMany:
        found.faults[:] = [_describe_excess(found)]  # names do not matter then
    if not found.faults:
        _leave_out_keys(found)
    found.entries.sort(key=lambda entry: entry.path)
    return found


def describe_file(path: Path, *, field: str) -> Entry:
    """Return one file as it is now.

    Raises:
        InvalidSpec: there is no such file, or it is none.
    """
    try:
        source = path.resolve(strict=True)
        status = source.stat()
    except (OSError, RuntimeError, ValueError):
        message = f"no such file or folder: {str(path)!r:.200} (name one, or an address such as s3://bucket/key)"
        raise InvalidSpec([Problem(path=field, message=message)]) from None
    if not stat.S_ISREG(status.st_mode):
        raise InvalidSpec([Problem(path=field, message=f"neither a file nor a folder: {str(path)!r:.200}")])
    return _entry(path.name, source, status)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A folder on the way: where it is, the patterns that count there, and the folders around it by inode."""

    folder: Path
    relative: str
    patterns: tuple[Patterns, ...]
    around: frozenset[tuple[int, int]]


def _walk(found: Scan, place: _Place) -> None:
    try:
        status = place.folder.stat()
        children = sorted(os.scandir(place.folder), key=lambda child: child.name)
    except OSError as error:
        found.faults.append(_tell_unreadable(found, place, error))
        return
    patterns = read_patterns(place.folder, relative=place.relative) + place.patterns
    around = place.around | {(status.st_dev, status.st_ino)}
    for child in children:
        if len(found.entries) >= MAX_TREE_ENTRIES:
            raise _TooMany
        _visit(
            found,
            _Place(folder=Path(child.path), relative=place.relative + child.name, patterns=patterns, around=around),
        )


def _visit(found: Scan, place: _Place) -> None:
    """Add one file, or a folder with what is in it; `place` is the child itself here."""
    try:
        status = place.folder.lstat()
        source = place.folder
        if stat.S_ISLNK(status.st_mode):
            target = _follow(found, source)
            if target is None:
                found.links.append(place.relative)
                return
            source, status = target, target.lstat()
    except FileNotFoundError:
        return  # it went while we looked; what is packed is what is still there
    except OSError as error:
        found.faults.append(_tell_unreadable(found, place, error))
        return
    entry = _entry(place.relative, source, status)
    if _is_left_out(found, place, entry):
        return
    if not entry.is_folder and not stat.S_ISREG(status.st_mode):
        found.specials.append(entry.path)
    elif entry.is_folder and (status.st_dev, status.st_ino) in place.around:
        found.links.append(entry.path)
    elif fault := _fault(entry.path) or _find_twin(found, entry.path):
        found.faults.append(f"{_shown(entry.path)} {fault} (rename it, or {_tell_way_out(found)})")
    else:
        found.entries.append(entry)
        if entry.is_folder:
            _walk(found, _Place(folder=source, relative=f"{entry.path}/", patterns=place.patterns, around=place.around))


def _tell_way_out(found: Scan) -> str:
    return f"list it in {IGNORE_FILE}" if found.honours_ignores else "send a .tar that the experiment unpacks itself"


def _tell_unreadable(found: Scan, place: _Place, error: OSError) -> str:
    return f"{_shown(place.relative)} cannot be read: {error.strerror} ({_tell_way_out(found)})"


def _follow(found: Scan, link: Path) -> Path | None:
    """Return what a link leads to, if that is in the workspace and might have been packed there."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    if not target.is_relative_to(found.root):
        return None
    parts = target.relative_to(found.root).parts
    if any(looks_secret(part) or (found.honours_ignores and is_never_wanted(part)) for part in parts):
        return None
    return target


def _is_left_out(found: Scan, place: _Place, entry: Entry) -> bool:
    path = f"{entry.path}/" if entry.is_folder else entry.path
    name = place.folder.name
    if is_asked_for(path, place.patterns):
        return False
    if found.honours_ignores and (is_never_wanted(name) or is_ignored(path, place.patterns)):
        return True
    if looks_secret(name):
        found.secrets.append(entry.path)
        return True
    if 0 < entry.size_bytes <= MAX_KEY_BYTES:
        found.unread.append(entry)
    return False


def _leave_out_keys(found: Scan) -> None:
    """Look into the small files; one that cannot be read is told of when it is packed."""
    for entry in found.unread:
        with suppress(OSError):
            if holds_key(entry.source):
                found.keys.append(entry.path)
    keys = set(found.keys)
    found.entries[:] = [entry for entry in found.entries if entry.path not in keys]


def _find_twin(found: Scan, path: str) -> str:
    """Return what is wrong with a path that is another one where case does not count; empty when it is the only one."""
    twin = found.folded.setdefault(fold_path(path), path)
    return "" if twin == path else f"differs from {_shown(twin)} in case alone"


def _fault(path: str) -> str:
    if path.count("/") >= MAX_TREE_DEPTH:
        return f"lies more than {MAX_TREE_DEPTH} folders deep"
    return path_fault(path)


class _TooMany(Exception):
    """There are more files and folders than can be sent."""


def _describe_excess(found: Scan) -> str:
    others = f"name a smaller folder, or list what is not needed in {IGNORE_FILE}"
    way_out = others if found.honours_ignores else "send a .tar that the experiment unpacks itself"
    most = name_largest(((entry.path, 1) for entry in found.entries), write=str)
    return f"more than {MAX_TREE_ENTRIES} files and folders, most of those seen in {most} ({way_out})"


def _entry(path: str, source: Path, status: os.stat_result) -> Entry:
    is_folder = stat.S_ISDIR(status.st_mode)
    return Entry(
        path=path,
        source=source,
        is_folder=is_folder,
        size_bytes=0 if is_folder else status.st_size,
        is_executable=bool(status.st_mode & stat.S_IXUSR),
        modified_ns=status.st_mtime_ns,
        identity=() if is_folder else identity(status),
    )


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file does; a time of modification can be set back, that of the last change cannot."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode, status.st_dev, status.st_ino)


def _shown(path: str) -> str:
    """Return a path as it can be printed: names are not always text."""
    return repr(path)[:200] if path else "the folder"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(_shown(name)[1:-1] for name in names[:_NAMED]) + more
