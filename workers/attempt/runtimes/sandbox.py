"""How confined a process container is: the words that start it, with bubblewrap where it works, else bare."""

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workers.attempt.runtimes.base import Plan
from workers.attempt.runtimes.hardening import INPUTS, WORKSPACE, run_as, size_tmp
from workers.attempt.runtimes.syscalls import make_filter
from workers.attempt.runtimes.view import TMP, make_parents, show, show_interpreter, show_system

# Stand in `argv` for the numbers of the files with the options, and with the filter of system calls.
OPTIONS, FILTER = "{options}", "{filter}"

_PROBE_SECONDS = 10
_DEVICES = Path("/dev")
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
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


def make_confined_start(plan: Plan, *, hidden: Iterable[Path] = (), nodes: Collection[str] = ()) -> Start:
    """Return the start in namespaces of its own, which shows the experiment what a container would show it.

    Args:
        plan: what to start.
        hidden: folders and files of the node that may lie below what is shown, as where its user's home is in `/opt`.
        nodes: files of devices that it may open, by their names below /dev.
    """
    env = {"HOME": TMP} | _make_env(plan)
    dropping: tuple[str, ...] = ()
    if os.geteuid() == 0:
        user, group = run_as()
        words = f"setpriv --reuid {user} --regid {group} --clear-groups --inh-caps=-all --bounding-set=-all --"
        dropping = tuple(words.split())
        env = {name: value for name, value in env.items() if not name.startswith(_LOADER)}
    options = [*_isolate(plan), *_show_devices(nodes), *show_system()]
    options += ["--perms", "1777", "--size", str(size_tmp(plan)), "--tmpfs", TMP]
    options += [*show_interpreter(hidden), *_show_plan(plan)]
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
    words = ["bwrap", *_unshare("none"), *show_system(), "--remount-ro", "/", "--", *_RUN, "true"]
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


def _show_devices(nodes: Collection[str]) -> Iterator[str]:
    for name in nodes:
        at = Path("/dev", name)
        yield from (*make_parents(at), "--dev-bind-try", str(_DEVICES / name), str(at))
    if nodes:
        # Programs find the place of a device on the machine there.
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


def _show_plan(plan: Plan) -> Iterator[str]:
    yield from ("--bind", str(plan.workspace), WORKSPACE)
    for name, path in sorted(plan.inputs.items()):
        yield from show(path, at=Path(INPUTS, name))
    yield from ("--remount-ro", "/")
