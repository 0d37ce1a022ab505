"""The system calls that a process container is refused: a filter for the kernel (seccomp), as bubblewrap takes it.

An engine brings a filter of its own; bubblewrap brings none. This one is a list of what no experiment needs and what
has let programs out of their namespaces before: making namespaces and mounts, keyrings, tracing, loading code into the
kernel, io_uring, and sockets of families that do not stop at the borders of a network namespace (to the machine's
hypervisor) or that nobody needs. Everything else is allowed. Each is answered with EPERM; `clone3` with ENOSYS, because
its flags lie in memory that a filter cannot read: libraries then use `clone`, whose flags it can.
"""

import errno
import platform
import struct
from collections.abc import Iterator, Sequence
from typing import Final

# By name: the number on x86-64, and on arm64; None where there is no such call.
_DENIED: Final = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
_CLONE3: Final = 435
_CLONE: Final = (56, 220)
_IOCTL: Final = (16, 29)
_NEW_NAMESPACES: Final = 0x7E020000
# Both put words into the input of a terminal that others read.
_TERMINAL: Final = (0x5412, 0x541C)

_SOCKET: Final = (41, 198)
# Of this machine, IPv4, IPv6, and the kernel's word about networks.
_FAMILIES: Final = (1, 2, 10, 16)

# What identifies the machine to the filter, and its column above.
_MACHINES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# The other numbering of x86-64 has the same calls under numbers from here on.
_X32: Final = 0x40000000

_LOAD, _IS_EQUAL, _IS_AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16
_ALLOW: Final = 0x7FFF0000
_ERROR: Final = 0x00050000
_KILL: Final = 0x80000000

_Step = tuple[int, int, int, int]


def make_filter(machine: str = "") -> bytes:
    """Return the filter as the kernel takes it, for this machine unless another is named; empty where it is unknown."""
    known = _MACHINES.get(machine or platform.machine())
    if known is None:
        return b""
    architecture, column = known
    steps: list[_Step] = [
        (_LOAD, 0, 0, _MACHINE),
        (_IS_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if column == 0:
        steps += _refuse((_IS_AT_LEAST, _X32), errno.ENOSYS)
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            steps += _refuse((_IS_EQUAL, number), errno.EPERM)
    steps += _refuse((_IS_EQUAL, _CLONE3), errno.ENOSYS)
    steps += _judge_argument(_CLONE[column], 0, [(_HAS_BIT, _NEW_NAMESPACES)])
    steps += _judge_argument(_IOCTL[column], 1, [(_IS_EQUAL, word) for word in _TERMINAL])
    steps += _require_argument(_SOCKET[column], 0, _FAMILIES)
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _refuse(test: tuple[int, int], number: int) -> Iterator[_Step]:
    kind, value = test
    yield (kind, 0, 1, value)
    yield (_RETURN, 0, 0, _ERROR | number)


def _judge_argument(call: int, position: int, tests: Sequence[tuple[int, int]]) -> list[_Step]:
    """Refuse one call by an argument of 32 bits, and allow it else; what comes after is for other calls."""
    inner = [(_LOAD, 0, 0, _ARGUMENTS + 8 * position)]
    for test in tests:
        inner += _refuse(test, errno.EPERM)
    inner.append((_RETURN, 0, 0, _ALLOW))
    return [(_IS_EQUAL, 0, len(inner), call), *inner]


def _require_argument(call: int, position: int, values: Sequence[int]) -> list[_Step]:
    """Allow one call with these values of an argument of 32 bits alone; what comes after is for other calls."""
    inner: list[_Step] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * position)]
    for left, value in zip(range(len(values), 0, -1), values, strict=True):
        inner.append((_IS_EQUAL, left, 0, value))
    inner += [(_RETURN, 0, 0, _ERROR | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return [(_IS_EQUAL, 0, len(inner), call), *inner]
