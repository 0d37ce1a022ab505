"""The compose file and the chart: one site in two forms, closed to the outside, with no password of its own.

No image registry can be reached from the tests, so nothing is started here; both are rendered and looked at.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from redis import Redis
from services.process import Process, find_program
from services.waiting import answers, free_port

from jobqueue.config import PREFIX, Settings
from jobqueue.keys import KeyRing, list_keys
from producers.cli import jobqueue

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "jobqueue"
OURS = ("node", "flower")
SERVERS = ("broker", "registry", "store")
# Where clouds tell machines about themselves.
METADATA = (
    "169.254.169.254",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "fe80::1",
    "fd00:ec2::254",
    "fd20:ce::254",
)
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::\?[^}]*)?\}")
_KUBERNETES = "1.33"
# An image is told by its own variables in one form and by its command in the other.
_INITIAL = {"REDISCLI_AUTH", "REGISTRY_PASSWORD"}


@pytest.fixture(scope="module")
def compose() -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    return render()


def helm(*words: str) -> str:
    path = f"{ROOT / '.cache' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    program = shutil.which("helm", path=path)
    assert program, "helm is not installed: .ci/packages fetches it"
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def render(*options: str) -> list[dict[str, Any]]:
    rendered = helm("template", "site", str(CHART), *options)
    return [each for each in yaml.safe_load_all(rendered) if each]


def components(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the pod of each component."""
    label = "app.kubernetes.io/component"
    pods = (each["spec"]["template"] for each in objects if each["kind"] in ("Deployment", "StatefulSet"))
    return {pod["metadata"]["labels"][label]: pod["spec"] for pod in pods}


def chart_environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in pod["containers"][0].get("env", [])}


def test_both_forms_have_the_same_parts(compose: Mapping[str, Any], objects: list[dict[str, Any]]) -> None:
    pods = components(objects)
    assert set(pods) == {*OURS, *SERVERS}
    assert set(compose["services"]) == {*OURS, *SERVERS, "keys"}
    assert [each["name"] for each in pods["node"]["initContainers"]] == ["keys"]
    for name in SERVERS:
        assert compose["services"][name]["image"] == pods[name]["containers"][0]["image"]
    assert {compose["services"][name]["image"] for name in (*OURS, "keys")} == {pods["node"]["containers"][0]["image"]}


@pytest.mark.parametrize("name", [*OURS, *SERVERS])
def test_both_forms_have_the_same_settings(
    name: str, compose: Mapping[str, Any], objects: list[dict[str, Any]]
) -> None:
    in_compose = set(compose["services"][name].get("environment", {}))
    passwords = {"BROKER_PASSWORD", "REGISTRY_PASSWORD", "STORE_PASSWORD", "FLOWER_PASSWORD"}
    in_chart = set(chart_environment(components(objects)[name])) - passwords
    assert in_chart - _INITIAL == in_compose - _INITIAL


def test_their_settings_are_settings(compose: Mapping[str, Any], objects: list[dict[str, Any]]) -> None:
    given = dict(compose["services"]["node"]["environment"])
    given |= chart_environment(components(objects)["node"])
    ours = {name.removeprefix(PREFIX).lower() for name in given if name.startswith(PREFIX)}
    assert ours <= set(Settings.model_fields)
    from_image = re.findall(r"\bJOBQUEUE_([A-Z_]+)=", (ROOT / "Dockerfile").read_text())
    assert {name.lower() for name in from_image} <= set(Settings.model_fields)


@pytest.mark.parametrize("form", ["compose", "chart"])
def test_a_node_of_either_form_can_read_its_settings(
    form: str, compose: Mapping[str, Any], objects: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = compose["services"]["node"]["environment"]
    given = node if form == "compose" else chart_environment(components(objects)["node"])
    for name, value in given.items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, _VARIABLE.sub("secret", value))
    settings = Settings()
    assert settings.broker.startswith("amqp://jobqueue:")
    assert settings.registry.startswith("redis://:")
    assert settings.storage == "s3://jobqueue"


def test_flower_has_no_password_but_its_own_and_the_brokers(
    compose: Mapping[str, Any], objects: list[dict[str, Any]]
) -> None:
    flower = compose["services"]["flower"]
    assert set(_VARIABLE.findall(str(flower))) == {"BROKER_PASSWORD", "FLOWER_PASSWORD"}
    assert "volumes" not in flower
    keys = re.findall(r"'key': '([\w-]+)'", str(components(objects)["flower"]))
    assert set(keys) == {"broker-password", "flower-password"}
    assert "FLOWER_BASIC_AUTH" in chart_environment(components(objects)["flower"])


def test_nothing_is_published_beyond_this_machine(compose: Mapping[str, Any], objects: list[dict[str, Any]]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert all("network_mode" not in service or service["network_mode"] == "none" for service in _services(compose))
    assert {each["kind"] for each in objects} == {"Service", "Deployment", "StatefulSet", "NetworkPolicy"}
    assert all(each["spec"].get("type", "ClusterIP") == "ClusterIP" for each in objects if each["kind"] == "Service")
    assert all("hostPort" not in str(pod) and not pod.get("hostNetwork") for pod in components(objects).values())


def select(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return a network policy by its name."""
    (found,) = [
        each["spec"] for each in objects if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == name
    ]
    return dict(found)


def _holds(block: Mapping[str, Any], address: str) -> bool:
    networks = [ip_network(block["cidr"]), *map(ip_network, block["except"])]
    return [ip_address(address) in network for network in networks] == [True, *[False] * len(block["except"])]


@pytest.mark.security_case("SSRF to metadata, by an experiment in a pod")
def test_a_pod_reaches_no_metadata_and_no_server_from_another_namespace(objects: list[dict[str, Any]]) -> None:
    """An experiment in a node's pod asks the cloud's metadata service; another tenant's pod tries the servers.

    Refused: by the network policies of the chart, where the cluster's network keeps to them.
    Evidence: the rendered policies: which pods they select, and what these may reach and be reached from.
    Red before: there was none; what is reached with a password only was reached by every pod of the cluster.
    """
    node, servers = select(objects, "site-node"), select(objects, "site-servers")
    labels = {
        name: next(
            each["spec"]["template"]["metadata"]["labels"]
            for each in objects
            if each["metadata"]["name"] == f"site-{name}" and "template" in each["spec"]
        )
        for name in (*OURS, *SERVERS)
    }
    assert node["podSelector"]["matchLabels"] == labels["node"]
    assert (node["policyTypes"], node["ingress"]) == (["Ingress", "Egress"], [])
    anywhere, names = node["egress"]
    blocks = [peer["ipBlock"] for peer in anywhere["to"] if "ipBlock" in peer]
    assert [address for address in METADATA if any(_holds(block, address) for block in blocks)] == []
    assert all(any(_holds(block, address) for block in blocks) for address in ("10.96.0.7", "1.1.1.1", "2606::1"))
    # Where the cluster's network counts no pod among addresses, the servers are reached all the same.
    assert {"namespaceSelector": {}} in anywhere["to"]
    assert {port["port"] for port in names["ports"]} == {53}
    (selected,) = servers["podSelector"]["matchExpressions"]
    assert {*selected["values"]} == {*labels} - {"node"}
    assert all(servers["podSelector"]["matchLabels"].items() <= labels[name].items() for name in selected["values"])
    assert servers["ingress"] == [{"from": [{"podSelector": {}}]}]
    others = "network.clients[0].namespaceSelector.matchLabels.team=lab"
    (opened,) = select(render("--set", others), "site-servers")["ingress"]
    assert len(opened["from"]) == 2


def test_the_engine_is_within_reach_of_the_node_alone(
    compose: Mapping[str, Any], objects: list[dict[str, Any]]
) -> None:
    reaching = {name for name, service in compose["services"].items() if "docker.sock" in str(service)}
    assert reaching == {"node"}
    assert "docker.sock" not in str(objects)
    assert "hostPath" not in str(objects)


def test_every_password_comes_from_outside(compose: Mapping[str, Any], objects: list[dict[str, Any]]) -> None:
    raw = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"\$\{(\w+)[^}]*\}", raw)) == {
        "BROKER_PASSWORD", "REGISTRY_PASSWORD", "STORE_PASSWORD", "FLOWER_PASSWORD",
    }  # fmt: skip
    assert all(":?" in found for found in re.findall(r"\$\{[^}]*\}", raw)), "without a value compose is to refuse"
    for name in SERVERS:
        assert _VARIABLE.search(str(compose["services"][name])), name
        assert "secretKeyRef" in str(components(objects)[name]), name
    secrets = re.findall(r"'secretKeyRef': \{'name': '([\w-]+)'", str(objects))
    assert set(secrets) == {"jobqueue-passwords"}
    assert "kind: Secret" not in str(objects)


def _words(container: Mapping[str, Any]) -> str:
    return str([container.get(name) for name in ("entrypoint", "command", "args")])


@pytest.mark.security_case("Passwords in the words of a process")
@pytest.mark.parametrize("form", ["compose", "chart"])
def test_no_password_is_among_the_words_of_a_server(
    form: str, compose: Mapping[str, Any], objects: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Another user of the machine, or of the cluster's node, lists its processes while the registry starts.

    Refused: no container gets a password in its words; the registry reads its own from its stdin.
    Evidence: the words of every container; those that a Redis gets from either form; that it wants the password.
    Red before: the registry's password stood in its words until it had started.
    """
    pods = components(objects)
    in_compose = [_words(service) for service in compose["services"].values()]
    in_chart = [_words(each) for pod in pods.values() for each in (*pod.get("initContainers", []), *pod["containers"])]
    assert not re.search(r"\$\{?\(?\w*(PASSWORD|SECRET)\w*[:)}]", " ".join(in_compose + in_chart))
    if form == "compose":
        words, variable = compose["services"]["registry"]["entrypoint"], "REDISCLI_AUTH"
        words = [word.replace("$$", "$") for word in words]
    else:
        words, variable = pods["registry"]["containers"][0]["command"], "REGISTRY_PASSWORD"
    port, program = free_port(), find_program("redis-server", package="redis-server")
    entrypoint = tmp_path / "docker-entrypoint.sh"
    entrypoint.write_text(f'#!/bin/sh\necho "$@" > words\nshift\nexec {program} "$@" --port {port}\n')
    entrypoint.chmod(0o700)
    server = Process(
        name="registry",
        command=["sh", "-c", f"cd {tmp_path} && PATH={tmp_path}:$PATH; {words[-1]}"],
        log=tmp_path / "log",
        ready=lambda: answers(port, b"PING\r\n", b"-NOAUTH"),
        environment={variable: "the-password"},
    )
    with server, Redis(port=port, password="the-password", decode_responses=True) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert (tmp_path / "words").read_text().split() == ["redis-server", "-"]


def test_settings_with_passwords_can_come_from_secrets_of_the_pods_that_need_them() -> None:
    options = ("broker.enabled=false", "settingsSecret=of-nodes", "flower.settingsSecret=of-flower")
    pods = components(render(*(word for option in options for word in ("--set", option))))
    given = {name: pod["containers"][0].get("envFrom") for name, pod in pods.items()}
    assert given == {
        "node": [{"secretRef": {"name": "of-nodes"}}],
        "flower": [{"secretRef": {"name": "of-flower"}}],
        "registry": None,
        "store": None,
    }


def test_our_containers_have_no_rights_to_spare(compose: Mapping[str, Any], objects: list[dict[str, Any]]) -> None:
    for name in (*OURS, "keys"):
        service = compose["services"][name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert service.get("read_only", False) is (name != "node")  # in which one submits, and fetches outputs
    for name in SERVERS:
        assert compose["services"][name]["security_opt"] == ["no-new-privileges:true"]
    for name, pod in components(objects).items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"].get("readOnlyRootFilesystem", False) is (name in OURS)
            assert "limits" in container["resources"]


def test_the_node_sees_its_folders_as_the_engine_does(compose: Mapping[str, Any]) -> None:
    node = compose["services"]["node"]
    cache = node["environment"]["JOBQUEUE_CACHE_DIR"]
    assert f"{cache}:{cache}" in node["volumes"]


def test_the_node_of_compose_takes_the_keys_of_another_user_because_it_cannot_change_them(
    compose: Mapping[str, Any],
) -> None:
    services = compose["services"]
    folder = services["node"]["environment"]["JOBQUEUE_KEYS"]
    assert (services["node"]["user"], services["keys"].get("user")) == ("0:0", None)
    assert f"keys:{folder}" in services["keys"]["volumes"]
    assert f"keys:{folder}:ro" in services["node"]["volumes"]


def test_the_state_of_a_node_lasts_as_long_as_what_it_is_about(
    compose: Mapping[str, Any], objects: list[dict[str, Any]]
) -> None:
    for given in (compose["services"]["node"]["environment"], chart_environment(components(objects)["node"])):
        assert given["JOBQUEUE_STATE_DIR"] == f"{given['JOBQUEUE_CACHE_DIR']}/state"


def test_a_node_has_time_to_drain(compose: Mapping[str, Any], objects: list[dict[str, Any]]) -> None:
    least = 2 * Settings.model_fields["grace"].default.total_seconds() + 30
    assert int(compose["services"]["node"]["stop_grace_period"].removesuffix("m")) * 60 > least
    assert components(objects)["node"]["terminationGracePeriodSeconds"] > least


@pytest.mark.parametrize("options", [(), ("--set", "broker.enabled=false,settings.JOBQUEUE_BROKER_URL=amqps://there")])
def test_the_chart_is_sound(options: tuple[str, ...], tmp_path: Path) -> None:
    helm("lint", "--strict", str(CHART), *options)
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(helm("template", "site", str(CHART), *options))
    words = [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", _KUBERNETES, str(manifests)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_server_that_is_there_already_replaces_the_charts_own() -> None:
    options = ("broker.enabled=false", "settings.JOBQUEUE_BROKER_URL=amqps://there", "flower.enabled=false")
    pods = components(render(*(word for option in options for word in ("--set", option))))
    assert set(pods) == {"node", "registry", "store"}
    assert chart_environment(pods["node"])["JOBQUEUE_BROKER_URL"] == "amqps://there"
    assert "BROKER_PASSWORD" not in chart_environment(pods["node"])


@pytest.fixture
def laptop_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the service `keys` and docs/deploy.md make."""
    folder = tmp_path / "keys"
    monkeypatch.setenv("JOBQUEUE_KEYS", str(folder))
    return folder


def test_the_keys_that_compose_makes_are_enough_and_are_made_once(
    compose: Mapping[str, Any], laptop_keys: Path
) -> None:
    program, *words = compose["services"]["keys"]["command"]
    assert program == "jobqueue"
    for _ in range(2):
        assert CliRunner().invoke(jobqueue, words).exit_code == 0
    ring = KeyRing(laptop_keys)
    sender = ring.sender().public
    assert ring.trusted(sender.key_id, queue="default_cpu") == sender
    ring.node_key(ring.recipient("default_cpu").key_id)
    assert len(list_keys(laptop_keys)) == 7


def test_the_chart_unpacks_keys_so_that_a_node_takes_them(
    objects: list[dict[str, Any]], laptop_keys: Path, tmp_path: Path
) -> None:
    CliRunner().invoke(jobqueue, ["keys", "new", "laptop"])
    mounted, unpacked = tmp_path / "mounted", tmp_path / "run"
    mounted.mkdir()
    unpacked.mkdir(mode=0o777)
    for path in laptop_keys.rglob("*.key"):
        path.chmod(0o440)  # as if it had gone through a secret's volume
    with tarfile.open(mounted / "keys.tar", "w") as archive:
        for role in ("node", "trusted"):
            archive.add(laptop_keys / role, arcname=role)
    shell, option, script = components(objects)["node"]["initContainers"][0]["command"]
    script = script.replace("/run/jobqueue", str(unpacked)).replace("/etc/jobqueue", str(mounted))
    subprocess.run([shell, option, script], check=True)
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in unpacked.rglob("*.*")}
    assert modes[".key"] & 0o077 == 0
    ring = KeyRing(unpacked / "keys")
    ring.node_key(ring.recipient("default_cpu").key_id)


def test_the_image_is_built_from_locked_files_that_exist() -> None:
    lines = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes -r requirements/image.txt" in lines
    assert re.search(r"^USER jobqueue$", lines, re.MULTILINE)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word.split("/")[0]
        for words in re.findall(r"^COPY (?!--from)(.+) \S+$", lines, re.MULTILINE)
        for word in words.split()
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_the_images_requirements_are_those_of_the_tests() -> None:
    def pinned(name: str) -> set[str]:
        return set(re.findall(r"^([\w.-]+==\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))

    assert pinned("image.txt") <= pinned("test.txt")
    assert {name.partition("==")[0] for name in pinned("image.txt")} >= {"celery", "docker", "flower", "nvidia-ml-py"}
    assert "://" not in (ROOT / "requirements" / "image.txt").read_text()


def _services(compose: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(compose["services"].values())
