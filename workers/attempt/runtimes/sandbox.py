"""How confined a process container is: the words that start it, with bubblewrap where it works, else bare."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workers.attempt.runtimes.base import Plan
from workers.attempt.runtimes.hardening import INPUTS, WORKSPACE, run_as, size_tmp
from workers.attempt.runtimes.syscalls import make_filter

TMP = "/tmp"  # noqa: S108 - the container's own

# Stand in `argv` for the numbers of the files with the options, and with the filter of system calls.
OPTIONS, FILTER = "{options}", "{filter}"

_PROBE_SECONDS = 10
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")
_SYSTEM_FILES = (
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ssl", "/etc/localtime"),
    *("/etc/ca-certificates", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/resolv.conf"),
)
# A shell, because it tells a missing command (127) from one that cannot run (126).
_RUN = ("/bin/sh", "-c", 'exec "$@"', "sh")
# In the shell, because bubblewrap itself, run by root, may not enter a folder that is another user's.
_RUN_IN_WORKSPACE = ("/bin/sh", "-c", f'cd {WORKSPACE} && exec "$@"', "sh")
# The loader obeys these in every program, and the first ones are not the experiment's.
_LOADER = "LD_"
_DROPPING = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a supervisor is to execute.

    Attributes:
        argv: the words.
        env: of the first program, which is the sandbox where there is one.
        folder: where it starts.
        options: further words for the sandbox, which nobody shall read in `ps`.
        depth: how many processes stand between the supervisor and the experiment's own.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    folder: str
    options: tuple[str, ...] = field(default=(), repr=False)
    depth: int = 0


def make_bare_start(plan: Plan, scratch: Path) -> Start:
    """Return the start without a sandbox: a container's paths do not exist, so the variables that name them change."""
    places = {f"{INPUTS}/{name}": str(path) for name, path in plan.inputs.items()} | {WORKSPACE: str(plan.workspace)}
    env = {"HOME": str(scratch)} | _make_env(plan) | {"TMPDIR": str(scratch)}
    moved = {name: _move(value, places) if name.startswith("JOBQUEUE_") else value for name, value in env.items()}
    return Start(argv=(*_RUN, *plan.command), env=moved, folder=str(plan.workspace))


def make_confined_start(plan: Plan, *, hidden: Iterable[Path] = ()) -> Start:
    """Return the start in namespaces of its own, which shows the experiment what a container would show it.

    Args:
        plan: what to start.
        hidden: folders of the node that may lie below what is shown, as where its user's home is in `/opt`.
    """
    env = {"HOME": TMP} | _make_env(plan)
    dropping: tuple[str, ...] = ()
    if os.geteuid() == 0:
        user, group = run_as()
        words = f"setpriv --reuid {user} --regid {group} --clear-groups --inh-caps=-all --bounding-set=-all --"
        dropping = tuple(words.split())
        env = {name: value for name, value in env.items() if not name.startswith(_LOADER)}
    options = [*_isolate(plan), *_show_system(), *_show_plan(plan, hidden)]
    for name, value in env.items():
        options += ["--setenv", name, value]
    program = shutil.which("bwrap") or "bwrap"
    filtered = ("--seccomp", FILTER) if make_filter() else ()
    argv = (program, "--args", OPTIONS, *filtered, "--", *dropping, *_RUN_IN_WORKSPACE, *plan.command)
    return Start(argv=argv, env={"PATH": _SYSTEM_PATH}, folder="/", options=tuple(options), depth=2)


def find_obstacle() -> str:
    """Return why this machine cannot confine a process, or nothing when it can: tried, not guessed."""
    if shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "setpriv is not installed"
    words = ["bwrap", *_unshare("none"), *_show_system(), "--remount-ro", "/", "--", *_RUN, "true"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not work here: {error}"
    return f"bubblewrap does not work here: {done.stderr.strip()}" if done.returncode else ""


def _make_env(plan: Plan) -> dict[str, str]:
    interpreter = str(Path(sys.executable).parent)
    return {**plan.env, "PATH": f"{interpreter}:{plan.env.get('PATH', _SYSTEM_PATH)}"}


def _move(value: str, places: Mapping[str, str]) -> str:
    for old, new in places.items():
        if value == old or value.startswith(f"{old}/"):
            return new + value[len(old) :]
    return value


def _isolate(plan: Plan) -> Iterator[str]:
    yield from _unshare(plan.network)
    yield from ("--hostname", "experiment", "--clearenv")
    shm = plan.resources.shm_bytes or plan.resources.memory_bytes // 2
    yield from ("--perms", "1777", "--size", str(shm), "--tmpfs", "/dev/shm")  # noqa: S108 - the container's own
    if plan.gpus:
        for device in sorted(Path("/dev").glob("nvidia*")):
            yield from ("--dev-bind", str(device), str(device))
        yield from ("--ro-bind", "/sys", "/sys")


def _unshare(network: str) -> Iterator[str]:
    yield from ("--die-with-parent", "--new-session", "--unshare-ipc", "--unshare-pid", "--unshare-uts")
    yield from ("--unshare-cgroup-try", "--proc", "/proc", "--dev", "/dev")
    if network == "none":
        yield "--unshare-net"
    if os.geteuid() == 0:
        yield from ("--cap-drop", "ALL")
        for capability in _DROPPING:
            yield from ("--cap-add", capability)
    else:
        yield "--unshare-user"


def _show_system() -> Iterator[str]:
    """Show what programs need of the machine, and nothing else of it: no home, no state, no keys."""
    for folder in map(Path, _SYSTEM_FOLDERS):
        if folder.is_symlink():
            yield from ("--symlink", str(folder.readlink()), str(folder))
        elif folder.is_dir():
            yield from ("--ro-bind", str(folder), str(folder))
    yield from _make_parents(Path("/etc/any"))
    for name in _SYSTEM_FILES:
        yield from ("--ro-bind-try", name, name)


def _show_plan(plan: Plan, hidden: Iterable[Path]) -> Iterator[str]:
    yield from ("--perms", "1777", "--size", str(size_tmp(plan)), "--tmpfs", TMP)
    yield from _show_interpreter()
    yield from _hide(hidden)
    yield from ("--bind", str(plan.workspace), WORKSPACE)
    for name, path in sorted(plan.inputs.items()):
        yield from _show(path, at=Path(INPUTS, name))
    yield from ("--remount-ro", "/")


def _show_interpreter() -> Iterator[str]:
    """Show the Python that the worker runs on, with its packages: `python` in the sandbox is the same one."""
    shown = _prefixes()
    for prefix in _without_nested(shown):
        yield from _show(prefix, at=prefix)
    # The links from the environment's `python` to the real one may pass through folders that are not shown.
    hop = Path(sys.executable)
    while hop.is_symlink():
        target = hop.parent / hop.readlink()
        if not _is_shown(hop, shown):
            yield from (*_make_parents(hop), "--symlink", str(target), str(hop))
        hop = target


def _prefixes() -> set[Path]:
    prefixes = {Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    return {*prefixes, *(prefix.resolve() for prefix in prefixes)}


def _hide(folders: Iterable[Path]) -> Iterator[str]:
    """Lay an empty folder over each of these that would be seen; the Python that lies in one is shown all the same."""
    prefixes, hidden = _prefixes(), set[Path]()
    for folder in sorted({path.resolve() for path in folders}):
        if folder.is_dir() and _is_shown(folder, prefixes) and hidden.isdisjoint(folder.parents):
            hidden.add(folder)
            yield from ("--perms", "0755", "--tmpfs", str(folder))
            for prefix in sorted(prefixes):
                if prefix.is_relative_to(folder):
                    yield from _show(prefix, at=prefix)
            yield from ("--remount-ro", str(folder))


def _without_nested(paths: Iterable[Path]) -> list[Path]:
    kept: list[Path] = []
    for path in sorted(paths):
        if not _is_shown(path, kept):
            kept.append(path)
    return kept


def _is_shown(path: Path, shown: Iterable[Path]) -> bool:
    return any(path.is_relative_to(other) for other in (*shown, *map(Path, _SYSTEM_FOLDERS)))


def _show(path: Path, *, at: Path) -> Iterator[str]:
    yield from _make_parents(at)
    yield from ("--ro-bind", str(path), str(at))


def _make_parents(path: Path) -> Iterator[str]:
    # Left to itself bubblewrap makes them for the owner alone.
    for parent in reversed(path.parents[:-1]):
        if str(parent) != TMP:
            yield from ("--perms", "0755", "--dir", str(parent))
