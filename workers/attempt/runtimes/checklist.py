"""What an experiment must not reach, as a program that tries all of it from inside and tells how it was answered.

Each row of `TABLE` is one thing that is tried, and the answers that are refusals. `make_program` returns the program;
it needs nothing but Python's standard library.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_REAL = ("docker", "process")

_DENIED = frozenset({"EPERM", "EACCES", "EROFS", "ENOSYS"})
_ABSENT = frozenset({"ENOENT", "ENOTDIR", "ESRCH", "ENXIO", "ENODEV"})
_UNREACHED = frozenset({"ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED", "EADDRNOTAVAIL"})
_NOTHING = frozenset({"[]"})
_KINDS = ("pid", "mnt", "net", "ipc", "uts")
# Stands in the environment of whoever starts the probe, which looks for it.
PLANTED = {"JOBQUEUE_PROBED": "worker-secret"}

# What stands there before every try.
_PREPARE = """
import ctypes, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
def write(path, text="1"):
    with open(path, "r+" if os.path.exists(path) else "w") as file:
        file.write(text)
def connect(address, port):
    with socket.socket() as it:
        it.settimeout(3)
        it.connect((address, port))
def writable(root, limit=30000):
    found = []
    for number, (folder, _, files) in enumerate(os.walk(root)):
        found += [p for p in (os.path.join(folder, f) for f in files) if os.access(p, os.W_OK) and takes(p)]
        if number > limit:
            break
    return found
def takes(path):
    try:
        with open(path) as file:
            content = file.read()
        with open(path, "w") as file:
            file.write(content)
    except (OSError, UnicodeDecodeError):
        return False
    return True
def read(path):
    try:
        return os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
    except OSError:
        return None
def status(name):
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name + ":"))
def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that is tried.

    Attributes:
        what: in words.
        code: an expression; its value, or the name of the error that it raises, is the answer.
        expected: the answers that are refusals.
        only: of runtimes; elsewhere docs/nodes.md says that it is not kept from anybody.
    """

    what: str
    code: str
    expected: frozenset[str]
    only: tuple[str, ...] = _REAL


def _rows(expected: frozenset[str], rows: Mapping[str, str], **fields: Any) -> list[Row]:
    return [Row(what=what, code=code, expected=expected, **fields) for what, code in rows.items()]


TABLE = [
    # Processes of the machine
    Row(what="share a namespace with the machine", expected=_NOTHING,
        code="[name for name in NAMESPACES if os.readlink(f'/proc/self/ns/{name}') == NAMESPACES[name]]"),
    Row(what="see more than its own few processes", code="len(processes()) < 10", expected=frozenset({"True"})),
    Row(what="signal a process of the machine", code="os.kill(HOST_PID, 0)", expected=_ABSENT),
    Row(what="have the worker's environment", code="'worker-secret' in repr(os.environ)",
        expected=frozenset({"False"})),
    Row(what="read the worker's environment", code="'worker-secret' in open('/proc/1/environ').read()",
        expected=frozenset({"False", *_DENIED})),
    # Devices
    Row(what="see a device of the machine",
        code="sorted(set(os.listdir('/dev')) - set('null zero full random urandom tty ptmx pts shm mqueue fd stdin "
        "stdout stderr core console'.split()))", expected=_NOTHING),
    *_rows(_DENIED | _ABSENT, {
        "make a device": "os.mknod('/tmp/device', 0o20666, os.makedev(1, 1))",
        "open memory": "open('/dev/mem', 'rb')",
        "open a disk": "open('/dev/sda', 'rb')",
        "open kvm": "open('/dev/kvm', 'rb')",
        "open the kernel's log": "open('/dev/kmsg', 'rb')",
        "read the kernel's memory": "open('/proc/kcore', 'rb').read(1)",
        "press a key of the kernel": "write('/proc/sysrq-trigger')",
    }),
    # The engine and the node
    *_rows(_ABSENT | _DENIED, {
        **{f"open {path}": f"open('{path}')" for path in (
            "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
            "/etc/shadow", "/root/.ssh/id_rsa", "/root/.docker/config.json", "/var/lib/docker",
        )},
        "open the engine's own socket": "open(ENGINE)",
        "open another workspace": "os.listdir(OTHER)",
        "open another workspace through a process":
            "[os.listdir(f'/proc/{p}/root' + OTHER) for p in processes()]",
        "open the folder that its workspace lies in": "os.listdir(PARENT)",
    }),
    # What lies in a folder that is shown is covered by an empty one.
    Row(what="open the node's state", code="os.listdir(STATE)", expected=_ABSENT | _DENIED | _NOTHING),
    Row(what="read keys, passwords or settings of the node", code="[path for path in PRIVATE if read(path)]",
        expected=_NOTHING, only=("process",)),
    # Files
    *_rows(_DENIED, {
        **{f"write to {path}": f"write('{path}/probe')" for path in ("", "/etc", "/usr", "/bin", "/inputs/data")},
        "write to an input": "write('/inputs/data/file')",
        "write to a kernel setting": "write('/proc/sys/kernel/core_pattern')",
        "outlive the node": "write('/proc/self/oom_score_adj', '-1')",
        "give a file to root": "(write('/workspace/mine'), os.chown('/workspace/mine', 0, 0))",
    }),
    Row(what="find anything writable in /sys", code="writable('/sys')", expected=_NOTHING),
    Row(what="find anything writable in /proc/sys", code="writable('/proc/sys')", expected=_NOTHING),
    # Privileges
    Row(what="have a capability", code="[n for n in ('CapEff', 'CapPrm', 'CapInh', 'CapAmb', 'CapBnd') "
        "if int(status(n), 16)]", expected=_NOTHING),
    Row(what="gain one from a setuid program", code="status('NoNewPrivs')", expected=frozenset({"1"})),
    Row(what="make any system call", code="status('Seccomp')", expected=frozenset({"2"})),
    Row(what="be root", code="0 in {*os.getresuid(), *os.getresgid(), *os.getgroups()}", expected=frozenset({"False"})),
    *_rows(_DENIED, {
        "become root": "os.setuid(0)",
        "become root's group": "os.setgid(0)",
        "take other groups": "os.setgroups([0])",
        "mount": "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
        "unmount": "call('umount2', b'/proc', 2)",
        "mount anew what is read-only": "call('mount', b'', b'/', b'', 32, None)",
        "change its root": "os.chroot('/tmp')",
        "leave its mounts": "call('unshare', 0x20000)",
        "leave its network": "call('unshare', 0x40000000)",
        "enter a namespace": "call('setns', os.open('/proc/self/ns/net', os.O_RDONLY), 0)",
        "set the clock": "call('clock_settime', 0, ctypes.create_string_buffer(16))",
        "set the host's name": "socket.sethostname('x')",
        "restart the machine": "call('reboot', 0)",
        "load a module": "call('syscall', 175, 0, 0, 0)",
        "read the kernel's log": "call('klogctl', 3, ctypes.create_string_buffer(10), 10)",
        "go ahead of others": "os.nice(-5)",
        "open a file by its handle":
            "call('open_by_handle_at', -100, __import__('struct').pack('Ii8s', 8, 1, b''), 0)",
    }),
    Row(what="raise its limit of open files", code="__import__('resource').setrlimit(7, (10**6, 10**6))",
        expected=frozenset({"ValueError('not allowed to raise maximum limit')"})),
    *_rows(_DENIED, {
        "become root of a namespace": "call('unshare', 0x10000000)",
        "begin a process in a namespace of its own": "call('syscall', 56, 0x10000011, 0, 0, 0, 0)",
        "begin one in the newer way": "call('syscall', 435, (0x10000000).to_bytes(8, 'little') + bytes(80), 88)",
        "use a keyring": "call('syscall', 250, 0, -3, 0)",
        "ask for a key": "call('syscall', 249, b'user', b'key', 0, 0)",
        "load a program into the kernel": "call('syscall', 321, 0, ctypes.create_string_buffer(120), 120)",
        "count what the machine does": "call('syscall', 298, ctypes.create_string_buffer(120), 0, -1, -1, 0)",
        "handle the faults of memory": "call('syscall', 323, 0)",
        "take the tree of mounts": "call('syscall', 428, -100, b'/', 1)",
        "open a file system": "call('syscall', 430, b'tmpfs', 0)",
        "switch on swap": "call('syscall', 167, b'/workspace', 0)",
        "count each process": "call('syscall', 163, b'/workspace')",
    }),
    *_rows(_DENIED | _ABSENT, {
        "trace a process of the machine": "call('syscall', 101, 16, HOST_PID, 0, 0)",
        "read the memory of a process of the machine": "open(f'/proc/{HOST_PID}/mem', 'rb')",
        "enter the folders of a process of the machine": "os.listdir(f'/proc/{HOST_PID}/root')",
    }),
    # Network
    Row(what="open a socket to the machine's hypervisor", code="socket.socket(40, socket.SOCK_STREAM)",
        expected=_DENIED, only=("process",)),
    Row(what="see a network", code="[n for _, n in socket.if_nameindex() if n != 'lo']", expected=_NOTHING),
    *_rows(_DENIED | _UNREACHED, {
        "open a raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "open a packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "reach the metadata address": "connect('169.254.169.254', 80)",
        "reach a private network": "connect('10.0.0.1', 80)",
        "reach the world": "connect('192.0.2.1', 443)",
        "reach a service of the machine": "connect('127.0.0.1', PORT)",
        "reach a socket without a file": "socket.socket(socket.AF_UNIX).connect(chr(0) + NAME)",
    }),
]  # fmt: skip

_PROBE = """
import errno, json
answers = {}
for what, code in json.loads(TABLE):
    try:
        answers[what] = str(eval(code))
    except OSError as error:
        answers[what] = errno.errorcode.get(error.errno, repr(error))
    except Exception as error:
        answers[what] = repr(error)
print(json.dumps(answers))
"""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the program is to look for, as it is on the machine around it.

    Attributes:
        host_pid: of a process of the machine.
        engine: the path of the engine's socket.
        state, other, parent: folders of the node: its state, another experiment's workspace, where workspaces lie.
        port: where something listens on the machine's loopback.
        name: of a socket without a file that something listens on.
        namespaces: the machine's, by kind.
        private: further folders and files of the node.
    """

    host_pid: int
    engine: str
    state: str
    other: str
    parent: str
    port: int
    name: str
    namespaces: Mapping[str, str]
    private: tuple[str, ...] = ()


def read_namespaces(pid: int) -> dict[str, str]:
    """Return the namespaces of a process, by kind."""
    return {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in _KINDS}


def choose_rows(runtime: str) -> list[Row]:
    """Return the rows for a runtime."""
    return [row for row in TABLE if runtime in row.only]


def make_program(rows: list[Row], known: Known) -> str:
    """Return the program, as Python reads it; it prints one JSON object, of each row's answer by what was tried."""
    names = {name.upper(): value for name, value in asdict(known).items()}
    names["TABLE"] = json.dumps([(row.what, row.code) for row in rows])
    return "".join(f"{name} = {value!r}\n" for name, value in names.items()) + _PREPARE + _PROBE
