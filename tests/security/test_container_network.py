"""The network `egress`: what a container in it reaches, and that a node without its packet filter does not offer it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from services.engine import Engine, open_engine
from services.images import PYTHON
from services.runtimes import MIB, NODE, run
from services.waiting import wait_until

from jobqueue.errors import RuntimeFailure
from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.docker import DockerRuntime
from workers.attempt.runtimes.egress_targets import Target, judge
from workers.attempt.runtimes.gaps import EnginePolicy
from workers.attempt.runtimes.hardening import EGRESS, run_as

FILTER = Path(__file__).parents[2] / "examples" / "egress-filter.sh"
WORLD = "203.0.113.1"
PRIVATE = ("169.254.169.254", "168.63.129.16", "10.0.0.1", "172.31.255.1", "192.168.0.1", "100.64.0.1", "192.0.2.53")

# Somebody lives at every address: without a filter all of them answer.
LIVE = """
import socket, sys, time
http = socket.create_server(("", 80))
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("", 53))
print("lives", flush=True)
while True:
    said, caller = names.recvfrom(100)
    names.sendto(said, caller)
"""
REACH = """
import socket
for address in {addresses!r}:
    with socket.socket() as it:
        it.settimeout(5)
        try:
            it.connect((address, 80))
            print(address, "reached")
        except OSError as error:
            print(address, type(error).__name__ if error.errno is None else error.errno)
"""


def sh(engine: Engine, script: str) -> str:
    words = [*engine.enter, "/bin/sh", "-ec", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    return done.stdout


@contextmanager
def world(engine: Engine) -> Iterator[None]:
    """A second network behind the engine's machine, in which each address of the probe is somebody's."""
    words = [*engine.enter, "unshare", "--net", sys.executable, "-c", f"input()\n{LIVE}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as there:
        assert there.stdin
        assert there.stdout
        home = os.readlink(f"/proc/{engine.namespaces.pid}/ns/net")  # noqa: PTH115 - no path
        wait_until(lambda: os.readlink(f"/proc/{there.pid}/ns/net") != home, what="the world")  # noqa: PTH115
        inside = f"nsenter --target {there.pid} --net"
        sh(
            engine,
            f"""
            ip link add out type veth peer name in netns {there.pid}
            ip addr add 203.0.113.2/24 dev out && ip link set out up && ip route add default via {WORLD}
            {inside} ip link set lo up
            {inside} ip addr add {WORLD}/24 dev in && {inside} ip link set in up
            for address in {" ".join(PRIVATE)}; do {inside} ip addr add $address/32 dev lo; done
            """,
        )
        print(file=there.stdin, flush=True)
        assert there.stdout.readline() == "lives\n"
        try:
            yield
        finally:
            there.kill()


def make_runtime(engine: Engine) -> DockerRuntime:
    return DockerRuntime(engine.url, policy=EnginePolicy(probe_image=PYTHON))


def make_plan(folder: Path, *, token: int, code: str) -> Plan:
    folder.mkdir(exist_ok=True)
    os.chown(folder, *run_as())
    labels = Labels(experiment_id="exp-egress", attempt=1, token=token, node_id=NODE)
    asked = Resources(cpus=1, memory_bytes=128 * MIB, disk_bytes=MIB, shm_bytes=0)
    given = {"image": PYTHON, "env": {}, "inputs": {}, "workspace": folder, "network": "egress"}
    return Plan(labels=labels, command=("python", "-c", code), resources=asked, **given)  # type: ignore[arg-type]


TARGET = Target(what="the metadata service", address="169.254.169.254", port=80)
KNOWN = Target(what="another container", address="172.17.0.3", port=4000, listens=True)


@pytest.mark.parametrize(
    ("answer", "target", "is_fine"),
    [
        ("EHOSTUNREACH", TARGET, True),
        ("ENETUNREACH", TARGET, True),
        ("connected", TARGET, False),
        ("ECONNREFUSED", TARGET, False),
        ("silent", TARGET, False),
        ("unknown", TARGET, False),
        ("nothing", TARGET, False),
        ("silent", KNOWN, True),
        ("connected", KNOWN, False),
        ("ECONNREFUSED", KNOWN, False),
    ],
)
def test_only_what_was_turned_away_counts_as_filtered(answer: str, target: Target, *, is_fine: bool) -> None:
    assert (judge([(target, answer)]) == "") is is_fine


@pytest.mark.security_case("network modes: egress without its packet filter")
def test_a_network_without_its_filter_is_not_offered(engine: Engine, tmp_path: Path) -> None:
    """A node offers the network `egress` although nobody has set up its packet filter.

    Refused: the node tries the network from inside, offers it to no spec, and starts no container in it.
    Evidence: the verdict of the probe on a real engine without any filter, and the error of a start.
    """
    runtime = make_runtime(engine)
    try:
        assert "this machine" in runtime.find_fault("egress")
        with pytest.raises(RuntimeFailure, match="not what it should be"):
            runtime.start(make_plan(tmp_path / "workspace", token=1, code="pass"))
        assert runtime.find_fault("bridge") == runtime.find_fault("none") == ""
    finally:
        runtime.close()
        engine.client.networks.get(EGRESS).remove()


def test_an_engine_that_falls_silent_is_not_waited_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.attempt.runtimes.egress._PROBE_SECONDS", 0.0)
    runtime = make_runtime(engine)
    try:
        assert runtime.find_fault("egress").startswith(("it could not be tried", "the probe did not run"))
    finally:
        runtime.close()
        engine.client.networks.get(EGRESS).remove()


@pytest.mark.full
@pytest.mark.security_case("network modes: egress to private ranges, the metadata address, the node, other containers")
def test_egress_reaches_the_world_and_nothing_private(tmp_path: Path) -> None:
    """Code in the network `egress` calls the metadata address, private networks, its node, or another container.

    Refused: every such packet is answered with "prohibited"; public addresses answer. A filter with a hole is found,
        and one that is lost after it was found whole: no container starts.
    Evidence: a real engine and packet filter before a second network in which each of these addresses is somebody's.
    Red before: a filter that was found whole was believed for five minutes.
    """
    with open_engine(options=("--iptables=true", "--ip-forward=true", "--ip-masq=true")) as engine, world(engine):
        before = make_runtime(engine)
        assert "this machine" in before.find_fault("egress")
        before.close()
        sh(engine, f"sh {FILTER} && sh {FILTER}")
        for hole, mended, found in HOLES:
            sh(engine, hole)
            runtime = make_runtime(engine)
            assert found in runtime.find_fault("egress"), hole
            runtime.close()
            sh(engine, mended or f"sh {FILTER}")
        runtime = make_runtime(engine)
        assert runtime.find_fault("egress") == ""
        code = REACH.format(addresses=[WORLD, "169.254.169.254", "10.0.0.1", "203.0.113.2"])
        container = runtime.start(make_plan(tmp_path / "workspace", token=2, code=code))
        _, reader = run(container)
        container.remove()
        told = dict(line.split() for line in reader.text().splitlines())
        assert told.pop(WORLD) == "reached"
        assert set(told.values()) == {"113"}
        for number, (loss, found) in enumerate(LOSSES):
            sh(engine, loss)
            assert runtime.find_fault("egress") == ""  # what was found a moment ago is still believed
            with pytest.raises(RuntimeFailure, match=f"not what it should be.*{found}"):
                runtime.start(make_plan(tmp_path / "workspace", token=3 + number, code="pass"))
            assert found in runtime.find_fault("egress")
            runtime.close()
            sh(engine, f"sh {FILTER}")
            runtime = make_runtime(engine)
            assert runtime.find_fault("egress") == ""
        assert not engine.client.containers.list(all=True)
        runtime.close()


# What takes a rule away, what puts it back where the script alone does not, and what the probe then says.
HOLES = [
    ("iptables -D JOBQUEUE-EGRESS -d 168.63.129.16 -j REJECT --reject-with icmp-admin-prohibited", "", "168.63.129.16"),
    ("iptables -D JOBQUEUE-EGRESS -d 169.254.0.0/16 -j REJECT --reject-with icmp-admin-prohibited", "", "the metadata"),
    (
        "iptables -D JOBQUEUE-EGRESS -d 10.0.0.0/8 -j REJECT --reject-with icmp-admin-prohibited",
        "",
        "a private network",
    ),
    (
        "iptables -D JOBQUEUE-EGRESS -p udp --dport 53 -j REJECT --reject-with icmp-admin-prohibited",
        "",
        "a name server",
    ),
    ("iptables -I DOCKER-USER -d 192.168.0.1 -j DROP", "iptables -D DOCKER-USER -d 192.168.0.1 -j DROP", "silence"),
    ("iptables -D INPUT -i jobqueue0 -j REJECT --reject-with icmp-admin-prohibited", "", "this machine"),
]

# What takes a whole chain away, as a reload or a flush of other rules does, and what is reached then.
LOSSES = [
    ("iptables -F JOBQUEUE-EGRESS", "the metadata service"),
    ("iptables -F INPUT", "this machine"),
]
