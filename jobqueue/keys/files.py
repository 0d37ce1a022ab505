"""Key files: written beside and renamed, refused where others could read or replace them.

Whose they are does not count on what is mounted read-only, which nobody here can change.
"""

import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from jobqueue.errors import KeyRefused

_log = logging.getLogger(__name__)

PRIVATE_SUFFIX: Final = ".key"
PUBLIC_SUFFIX: Final = ".pub"
_FOLDER_MODE = 0o700
_MODES = {PRIVATE_SUFFIX: 0o600, PUBLIC_SUFFIX: 0o644}
_KEPT_MODE = 0o644
_MAX_BYTES = 64 * 1024
_GROUP, _OTHERS = 0o070, 0o007
_ROOT: Final = 0


def make_folder(folder: Path) -> None:
    """Make the folder, for its owner alone, if it is not there."""
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)


def write_key(path: Path, line: str) -> None:
    """Write a line to its file in one step; readers see all of it or nothing, and a crash leaves nothing half.

    Raises:
        KeyRefused: there can be none: the folder is not ours, or a secret that is mounted read-only.
    """
    try:
        make_folder(path.parent.parent)
        make_folder(path.parent)
        _put(path, f"{line}\n".encode("ascii"), mode=_MODES[path.suffix])
    except OSError as error:
        told = f"no key can be put into {path.parent}: {error.strerror}"
        raise KeyRefused(told, hint="set JOBQUEUE_KEYS to a folder of yours") from None


def read_key(path: Path) -> str:
    """Return the text of a key file.

    Of a secret that is mounted read-only, as by Kubernetes, the group may read private keys: who is in it is the pod's
    to say, whose process does not own the file.

    Raises:
        KeyRefused: it cannot be read, is another user's, or others can read a private or write a public one; the hint
            is what to run.
        FileNotFoundError: it has gone.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            is_mounted = bool(os.fstatvfs(file.fileno()).f_flag & os.ST_RDONLY)
            content = file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from None
    mode = stat.S_IMODE(status.st_mode)
    if not is_mounted:
        _check_owner(path, status)
    if path.suffix == PRIVATE_SUFFIX and mode & (_OTHERS if is_mounted else _GROUP | _OTHERS):
        hint = "mount the secret with defaultMode: 0440" if is_mounted else f"chmod 600 {path}"
        raise KeyRefused(f"others can read the private key {path} (mode {mode:o})", hint=hint)
    if mode & 0o022 and not is_mounted:
        raise KeyRefused(f"others can replace the key {path} (mode {mode:o})", hint=f"chmod go-w {path}")
    return content.decode("ascii", "replace")


def read_kept(path: Path) -> bytes | None:
    """Return what was kept in a file beside keys; None where nothing was.

    Raises:
        KeyRefused: something was, and cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None


def write_kept(path: Path, content: bytes) -> None:
    """Keep something beside keys, in one step; where the folder cannot be written nothing is kept."""
    try:
        _put(path, content, mode=_KEPT_MODE)
    except OSError as error:
        _log.warning("keys.not_kept file=%s error=%s", path, error.strerror)


def _put(path: Path, content: bytes, *, mode: int) -> None:
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def check_folder(folder: Path) -> None:
    """Return when nobody else can put keys into the folder, or nobody can: a mounted secret is read-only, or not there.

    Raises:
        KeyRefused: others can; the hint is the command to run.
    """
    try:
        status, flags = folder.stat(), os.statvfs(folder).f_flag
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(folder, error) from None
    mode = stat.S_IMODE(status.st_mode)
    if flags & os.ST_RDONLY:
        return
    _check_owner(folder, status)
    if mode & 0o022:
        raise KeyRefused(f"others can add keys to {folder} (mode {mode:o})", hint=f"chmod 700 {folder}")


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Return when it is ours or root's: whoever owns it can open and replace it, whatever its mode."""
    if status.st_uid not in (_ROOT, os.geteuid()):
        told = f"{path} belongs to another user (id {status.st_uid}), who can change it"
        raise KeyRefused(told, hint=f"run as its owner, or: chown {os.geteuid()} {path}")


def stamp(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Return what changes when a key file is added, removed, replaced, edited, or given another mode."""
    stamps = []
    for path in key_files(folder):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unreadable(path, error) from None
        stamps.append((path.name, status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(stamps)


def key_files(folder: Path) -> list[Path]:
    """Return the key files of a folder by name; none where there is no folder."""
    suffixes = (PRIVATE_SUFFIX, PUBLIC_SUFFIX)
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in suffixes and not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from None


def _unreadable(path: Path, error: OSError) -> KeyRefused:
    hint = "run as its owner" if isinstance(error, PermissionError) else "mend it, or take it away"
    return KeyRefused(f"{path} cannot be read: {error.strerror}", hint=hint)
