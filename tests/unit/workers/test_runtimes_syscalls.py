"""The filter of system calls, run here as the kernel runs it: which calls pass, and with which arguments."""

import errno
import struct
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_UNIX

import pytest

from workers.attempt.runtimes.syscalls import make_filter

X86, ARM = 0xC000003E, 0xC00000B7
ALLOWED = "allowed"
KILLED = "killed"


def run(program: bytes, number: int, *arguments: int, architecture: int = X86) -> str:
    """Return what the filter says to a call: the kernel's machine has one register, and only ever jumps forward."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    steps = list(struct.iter_unpack("=HBBI", program))
    at, register = 0, 0
    while True:
        code, is_so, is_not, value = steps[at]
        at += 1
        match code:
            case 0x20:
                (register,) = struct.unpack_from("=I", data, value)
            case 0x15:
                at += is_so if register == value else is_not
            case 0x35:
                at += is_so if register >= value else is_not
            case 0x45:
                at += is_so if register & value else is_not
            case 0x06:
                if value == 0x7FFF0000:
                    return ALLOWED
                return KILLED if value == 0x80000000 else errno.errorcode[value & 0xFFFF]
            case _:
                raise AssertionError(code)


@pytest.mark.parametrize(
    ("machine", "architecture", "numbers"),
    [
        ("x86_64", X86, (165, 272, 308, 250, 101, 321, 246, 425, 432)),
        ("aarch64", ARM, (40, 97, 268, 219, 117, 280, 425)),
    ],
)
def test_what_leads_out_is_refused(machine: str, architecture: int, numbers: tuple[int, ...]) -> None:
    program = make_filter(machine)
    assert {run(program, number, architecture=architecture) for number in numbers} == {"EPERM"}


@pytest.mark.parametrize(
    ("machine", "architecture", "numbers"),
    [("x86_64", X86, (0, 1, 2, 9, 57, 59, 202, 257)), ("aarch64", ARM, (63, 64, 56, 222, 221, 98))],
)
def test_what_programs_need_is_allowed(machine: str, architecture: int, numbers: tuple[int, ...]) -> None:
    program = make_filter(machine)
    assert {run(program, number, architecture=architecture) for number in numbers} == {ALLOWED}


def test_processes_and_threads_may_be_made_but_in_no_new_namespace() -> None:
    program = make_filter("x86_64")
    assert run(program, 56, 0x01200011) == run(program, 56, 0x3D0F00) == ALLOWED
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert run(program, 56, 0x11 | flag) == "EPERM"
    assert run(program, 435) == "ENOSYS"


def test_nothing_is_typed_into_a_terminal() -> None:
    program = make_filter("x86_64")
    assert run(program, 16, 0, 0x5413) == ALLOWED
    assert run(program, 16, 0, 0x5412) == run(program, 16, 0, 0x541C) == "EPERM"


@pytest.mark.parametrize(("machine", "architecture", "number"), [("x86_64", X86, 41), ("aarch64", ARM, 198)])
def test_sockets_are_of_the_families_that_a_network_namespace_holds(
    machine: str, architecture: int, number: int
) -> None:
    def ask(family: int) -> str:
        return run(make_filter(machine), number, family, 1, architecture=architecture)

    assert {ask(int(family)) for family in (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK)} == {ALLOWED}
    assert {ask(family) for family in range(64) if family not in (1, 2, 10, 16)} == {"EPERM"}  # 40 is the hypervisor's
    assert ask(1 << 32 | 40) == "EPERM"
    assert run(make_filter(machine), number + 1, 40, architecture=architecture) == ALLOWED


def test_the_other_numberings_of_calls_are_no_way_round() -> None:
    program = make_filter("x86_64")
    assert run(program, 0x40000000 + 101) == "ENOSYS"
    assert run(program, 26, architecture=0x40000003) == KILLED


def test_a_machine_that_is_not_known_has_no_filter() -> None:
    assert make_filter("riscv64") == b""
