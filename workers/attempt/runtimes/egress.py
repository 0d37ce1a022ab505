"""The network `egress`: the world without its private parts, offered where a probe was turned away from those.

The node makes the network; the packet filter is the operator's, because it takes root. Whether it is there is tried
from inside, by a container like any other, and not read from rules. Silence proves nothing, because nobody may live at
the address: the filter has to answer "prohibited", which no closed port and no empty address does.

A kernel says "prohibited" to one address about once a second: to try all takes ten seconds, and one address of each
chain of the filter takes one. So all are tried now and then, and these before each container starts: what a reload, a
restart or a flush takes away is a chain.
"""

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, Timer
from typing import Any, Final

from jobqueue.errors import JobqueueError, RuntimeFailure
from workers.attempt.runtimes.egress_targets import ASK, FIXED, LISTEN, METADATA, NOTHING, Target, judge
from workers.attempt.runtimes.engine import Engine, Gone
from workers.attempt.runtimes.engine_streams import Attachment
from workers.attempt.runtimes.frames import split_frames
from workers.attempt.runtimes.hardening import EGRESS

_log = logging.getLogger(__name__)

BRIDGE: Final = "jobqueue0"

_TRUST_SECONDS = 300.0
_DOUBT_SECONDS = 10.0
_LISTENER_SECONDS = 120
# An engine may fall silent: then nobody waits for what the probe has to say.
_PROBE_SECONDS = 150.0
_PORT = 4000
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """What the last whole try has found.

    Attributes:
        fault: what is wrong; empty when nothing is.
        network: the engine's id of what was tried.
    """

    fault: str = ""
    network: str = ""
    until_seconds: float = 0.0


class Egress:
    """The network on one engine; its methods may be called from any thread.

    Args:
        resolve: returns the probe's image as the engine knows it, pulled if need be; there is a `python` in it.
        look: returns the same, and raises `RuntimeFailure` where it would have to be pulled.
    """

    def __init__(self, engine: Engine, *, resolve: Callable[[], str], look: Callable[[], str]) -> None:
        self._engine, self._resolve, self._look = engine, resolve, look
        self._lock = Lock()
        self._verdict = _Verdict()

    def find_fault(self) -> str:
        """Return why experiments do not get the network, or nothing; tried anew when that is some minutes old.

        It may take as long as a pull: call it where somebody may wait.
        """
        if self._is_known():
            return self._verdict.fault
        return self._told(lambda: self._try_all(self._resolve()))

    def confirm(self) -> str:
        """Return why no container may start in it now, or nothing; tried now, in about a second. Nothing is pulled."""
        if self._is_known() and self._verdict.fault:
            return self._verdict.fault
        return self._told(self._try_now)

    def _is_known(self) -> bool:
        return time.monotonic() < self._verdict.until_seconds

    def _told(self, find: Callable[[], str]) -> str:
        try:
            return find()
        except JobqueueError as error:
            return self._note(f"it could not be tried: {error.message}").fault

    def _note(self, fault: str, *, network: str = "") -> _Verdict:
        if fault:
            _log.warning("network.not_offered", extra={"network": EGRESS, "detail": fault})
        until_seconds = time.monotonic() + (_DOUBT_SECONDS if fault else _TRUST_SECONDS)
        self._verdict = _Verdict(fault=fault, network=network, until_seconds=until_seconds)
        return self._verdict

    def _try_all(self, image: str) -> str:
        """Try every address; who comes while somebody does gets what that one finds."""
        with self._lock:
            if not self._is_known():
                network, gateway = self._make_network()
                with closing(self._ask_all(image, gateway)) as answers:
                    self._note(judge(answers), network=network)
            return self._verdict.fault

    def _try_now(self) -> str:
        image = self._look()
        network, gateway = self._make_network()
        if self._verdict.network != network:
            self._verdict = _Verdict()
        if not self._is_known():
            return self._try_all(image)
        with closing(self._ask(image, [_this_machine(gateway), METADATA])) as answers:
            fault = judge(answers)
        return self._note(fault).fault if fault else ""

    def _ask_all(self, image: str, gateway: str) -> Generator[tuple[Target, str], None, None]:
        listen = LISTEN.format(port=_PORT, seconds=_LISTENER_SECONDS)
        with self._run(image, "python", "-c", listen) as (neighbour, said):
            next(said, b"")
            address = self._find_address(neighbour)
            beside = Target(what="another container", address=address, port=_PORT, listens=True)
            yield from self._ask(image, [_this_machine(gateway), *FIXED, beside])

    def _ask(self, image: str, targets: Sequence[Target]) -> Generator[tuple[Target, str], None, None]:
        """Yield each address with the answer from there, or "nothing" for a probe that does not run."""
        order = json.dumps([(target.kind, target.address, target.port) for target in targets])
        with self._run(image, "python", "-c", ASK, order) as (_, lines):
            words = _split(lines)
            yield from ((target, next(words, NOTHING)) for target in targets)

    def _make_network(self) -> tuple[str, str]:
        """Make the network where it is not there; return its id, and the address of this machine in it."""
        with self._engine.client("make a network") as client:
            listed = client.networks(names=[EGRESS])
            if not any(network["Name"] == EGRESS for network in listed):
                client.create_network(
                    EGRESS,
                    driver="bridge",
                    options={
                        "com.docker.network.bridge.name": BRIDGE,
                        "com.docker.network.bridge.enable_icc": "false",
                    },
                    check_duplicate=True,
                    enable_ipv6=False,
                    labels={"jobqueue.network": "egress"},
                )
            seen = client.inspect_network(EGRESS)
            return str(seen["Id"]), str(seen["IPAM"]["Config"][0]["Gateway"])

    def _find_address(self, identity: str) -> str:
        with self._engine.client("inspect a container") as client:
            return str(client.inspect_container(identity)["NetworkSettings"]["Networks"][EGRESS]["IPAddress"])

    @contextmanager
    def _run(self, image: str, *command: str) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Run a container of the probe; yields its id and output, and kills it. The engine removes it at its end."""
        with self._engine.client("create a container") as client:
            body = make_probe_body(image, command)
            identity = str(client.create_container_from_config(body)["Id"])  # type: ignore[no-untyped-call]
        try:
            with closing(Attachment(self._engine, identity)) as output, _cut_after(_PROBE_SECONDS, output.close):
                with self._engine.client("start a container") as client:
                    client.start(identity)
                yield identity, (piece for _, piece in split_frames(output.blocks()))
        finally:
            with suppress(Gone, RuntimeFailure), self._engine.client("remove a container") as client:
                client.remove_container(identity, force=True)


def _this_machine(gateway: str) -> Target:
    return Target(what="this machine", address=gateway, port=22)


@contextmanager
def _cut_after(seconds: float, cut: Callable[[], None]) -> Iterator[None]:
    timer = Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _split(pieces: Iterable[bytes]) -> Iterator[str]:
    kept = b""
    for piece in pieces:
        *lines, kept = (kept + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)


def make_probe_body(image: str, command: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the JSON body of the create request for a container of the probe: as confined, and without any folder."""
    return {
        "Image": image,
        "Entrypoint": list(command),
        "Cmd": [],
        "User": "65534:65534",
        "Labels": {"jobqueue.probe": EGRESS},
        "HostConfig": {
            "AutoRemove": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Memory": 64 * _MIB,
            "MemorySwap": 64 * _MIB,
            "PidsLimit": 32,
            "Init": True,
            "NetworkMode": EGRESS,
            "LogConfig": {"Type": "none", "Config": {}},
        },
    }
