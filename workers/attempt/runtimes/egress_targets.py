"""What must not be reached from the network `egress`, the program that tries it from inside, and what answers mean."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# The answer of a probe that does not run.
NOTHING: Final = "nothing"

_SILENT: Final = "silent"
# A filter that rejects with `icmp-admin-prohibited`, or no way there at all.
_TURNED_AWAY: Final = frozenset({"EHOSTUNREACH", "ENETUNREACH", "EACCES", "EPERM", "EADDRNOTAVAIL", "EAFNOSUPPORT"})

# One after the other, with time for a packet to be sent again: a kernel answers "prohibited" once a second for long.
ASK: Final = """
import errno, json, socket, sys
def answer(text):
    print(text, flush=True)
for kind, address, port in json.loads(sys.argv[1]):
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as it:
            it.settimeout(4)
            it.connect((address, port))
            for _ in range(4 if kind == "udp" else 0):
                it.send(b"?")
                it.settimeout(1.5)
                try:
                    it.recv(1)
                    break
                except TimeoutError:
                    pass
            else:
                if kind == "udp":
                    raise TimeoutError
        answer("connected")
    except TimeoutError:
        answer("silent")
    except OSError as error:
        answer(errno.errorcode.get(error.errno, "unknown"))
"""
LISTEN: Final = """
import socket, time
with socket.create_server(("", {port})):
    print("listens", flush=True)
    time.sleep({seconds})
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One address that an experiment must not reach.

    Attributes:
        what: in words.
        kind: `tcp` or `udp`.
        listens: whether somebody is known to be there, so that silence proves that nothing arrives.
    """

    what: str
    address: str
    port: int
    kind: str = "tcp"
    listens: bool = False


METADATA: Final = Target(what="the metadata service", address="169.254.169.254", port=80)
FIXED: Final = (
    METADATA,
    Target(what="the metadata service", address="fd00:ec2::254", port=80),
    Target(what="the metadata service", address="168.63.129.16", port=80),
    Target(what="a private network", address="10.0.0.1", port=80),
    Target(what="a private network", address="172.31.255.1", port=80),
    Target(what="a private network", address="192.168.0.1", port=80),
    Target(what="a private network", address="100.64.0.1", port=80),
    Target(what="a name server of its own choice", address="192.0.2.53", port=53, kind="udp"),
)


def judge(answers: Iterable[tuple[Target, str]]) -> str:
    """Return what is wrong with a network whose probe was answered so; empty when nothing is."""
    for target, answer in answers:
        if answer == NOTHING:
            return "the probe did not run: is a python in JOBQUEUE_PROBE_IMAGE?"
        place = f"{target.what} ({target.address}, {target.kind} port {target.port})"
        if answer in _TURNED_AWAY or (answer == _SILENT and target.listens):
            continue
        if answer == _SILENT:
            return f"nothing turned the probe away from {place}, and silence proves nothing: reject, do not drop"
        return f"the probe got through to {place}: {answer}"
    return ""
