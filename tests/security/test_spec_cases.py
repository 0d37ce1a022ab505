"""What a spec can say, and what an engine can be asked for: nothing of the first leaves its place in the second."""

import ast
import inspect
import json
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import docker.types
import pytest
from docker.models.containers import RUN_CREATE_KWARGS
from hypothesis import HealthCheck, given, settings
from services.images import PYTHON
from services.runtimes import MIB, NODE, run
from strategies import specs

from jobqueue.errors import InvalidSpec
from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Reason
from jobqueue.registry.base import Lease
from jobqueue.resources import Offer, Resources
from jobqueue.spec import ExperimentSpec, parse_spec
from workers.attempt.planning import make_plan, refuse
from workers.attempt.runtimes import open_runtime
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.hardening import make_create_body, run_as
from workers.attempt.site import Policy

ROOT = Path(__file__).parents[2]
SMALL: Mapping[str, Any] = {"image": "python:3.12", "command": ["true"]}

# The client library's options that are a field of a spec as well; the spec's own meaning is checked below.
BOTH = {"command", "image", "labels", "name", "shm_size"}
# What of a create request may differ from one spec to another.
VARIES = {
    "Memory",
    "MemorySwap",
    "NanoCpus",
    "PidsLimit",
    "ShmSize",
    "Ulimits",
    "Tmpfs",
    "NetworkMode",
    "DeviceRequests",
    "Mounts",
}
HOST_CONFIG = VARIES | {
    *("CapDrop", "Privileged", "SecurityOpt", "ReadonlyRootfs", "OomScoreAdj", "IpcMode", "Init"),
    *("AutoRemove", "RestartPolicy", "LogConfig", "Runtime"),
}
LABELS = {"jobqueue.experiment", "jobqueue.attempt", "jobqueue.token", "jobqueue.node"}

NASTY = [
    *("$(touch {canary})", "`touch {canary}`", "; touch {canary}", "| touch {canary}", "&& touch {canary} #"),
    *("' ; touch {canary} ; '", '" ; touch {canary} ; "', "> {canary}", "\n touch {canary} \n"),
    *("${{IFS}}touch${{IFS}}{canary}", "--privileged", "-v /:/host", "%s%n{{}}", "\\", "~", "*", "\u202e"),
    *("\U0001f40d \u00fc", "\x1b[31m", "a\tb\r", "jobqueue.node=other", "../../etc/passwd"),
]


def of_spec(spec: ExperimentSpec, folder: Path, *, gpus: tuple[str, ...] = ()) -> Plan:
    return make_plan(
        spec,
        lease=Lease(experiment_id=make_experiment_id(), attempt=1, token=7),
        queue="default_cpu",
        node_id=NODE,
        image=spec.image,
        workspace=folder,
        inputs=dict.fromkeys(spec.inputs, folder),
        grace=timedelta(seconds=1),
        gpus=gpus,
    )


@pytest.mark.security_case(
    "spec asking privileged, host network, host mount, docker socket, other's GPU, unknown field"
)
def test_no_option_of_an_engine_can_be_written_into_a_spec() -> None:
    """A spec names an option of the engine: privileged, binds, devices, a namespace of the host, a runtime, any other.

    Refused: the whole spec, by the name of the unknown field.
    Evidence: each parameter of the client library's create request, by its own name and by the engine's.
    """
    options = {
        *inspect.signature(docker.types.HostConfig.__init__).parameters,
        *inspect.signature(docker.types.ContainerConfig.__init__).parameters,
        *RUN_CREATE_KWARGS,
    } - {"self", "version"}
    assert len(options) > 60
    written = {name for option in options for name in (option, "".join(map(str.title, option.split("_"))))}
    taken = set()
    for name in sorted(written | {"HostConfig", "Binds", "Privileged", "docker_args", "__class__"}):
        try:
            parse_spec({**SMALL, name: True})
        except InvalidSpec as error:
            if "unknown field" not in {problem.path: problem.message for problem in error.problems}[name]:
                taken.add(name)
        else:
            taken.add(name)
    assert taken == BOTH


@pytest.mark.security_case("spec asking host network, other's GPU, negative limits")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("network", name) for name in ("host", "container:x", "jobqueue-egress", "ns:/proc/1/ns/net", "", "none ")],
        *[(name, -1) for name in ("memory", "disk", "shm_size", "cpus", "gpus", "gpu_memory", "timeout", "retries")],
        *[(name, float("inf")) for name in ("cpus", "memory", "timeout")],
        *[("gpus", value) for value in ("all", ["GPU-1"], "GPU-00000000", 10**9)],
        *[("inputs", {"x": value}) for value in ("/", "/var/run/docker.sock", {"uri": "file:///"})],
        *[("workspace", value) for value in ("/", "/proc", "/var/run/docker.sock")],
        *[("outputs", [value]) for value in ("/etc/shadow", "../../x", "/proc/self/environ", "a/../../b")],
        *[
            ("env", {name: "x"})
            for name in ("LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
        ],
        *[
            ("env", {name: "x"})
            for name in ("NVIDIA_MIG_CONFIG_DEVICES", "DOCKER_HOST", "JOBQUEUE_TOKEN", "A=B", "A B")
        ],
        *[("secrets", {name: "x"}) for name in ("LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES", "JOBQUEUE_BROKER_URL")],
    ],
)
def test_a_value_that_reaches_beyond_its_field_is_refused(field: str, value: object) -> None:
    """A known field holds what reaches beyond it: the host's network, a path of the host, a device, a negative limit.

    Refused: the whole spec, by the name of the field.
    Evidence: the error that `parse_spec`, the only door of a spec, raises for each.
    """
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({**SMALL, field: value})
    assert any(problem.path.startswith(field) for problem in caught.value.problems)


@pytest.mark.security_case(
    "spec asking privileged, host network, host mount, docker socket, other's GPU, label injection"
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs())
def test_whatever_a_spec_says_stays_in_its_place_of_the_create_request(spec: ExperimentSpec, tmp_path: Path) -> None:
    """A valid spec of any content tries to reach an option of the engine that is not its own.

    Refused: every spec leads to the same request but for its own limits, words, variables and folders.
    Evidence: a property over generated specs: the keys of the request, the values that may not vary, its mounts,
        devices, user and labels.
    """
    gpus = tuple(f"GPU-{number}" for number in range(spec.gpus))
    body = make_create_body(of_spec(spec, tmp_path, gpus=gpus))
    plain = make_create_body(of_spec(parse_spec(SMALL), tmp_path))
    host, same = body["HostConfig"], plain["HostConfig"]
    assert host.keys() == HOST_CONFIG
    assert {key: host[key] for key in HOST_CONFIG - VARIES} == {key: same[key] for key in HOST_CONFIG - VARIES}
    free = {"Image", "Entrypoint", "Env", "Labels", "HostConfig"}
    assert {key: body[key] for key in body.keys() - free} == {key: plain[key] for key in plain.keys() - free}
    assert body["Entrypoint"] == list(spec.command)
    assert body["Labels"].keys() == LABELS
    assert host["NetworkMode"] in ("none", "bridge", "jobqueue-egress")
    assert {mount["Source"] for mount in host["Mounts"]} == {str(tmp_path)}
    assert [mount["Target"] for mount in host["Mounts"] if not mount["ReadOnly"]] == ["/workspace"]
    assert [device for request in host["DeviceRequests"] for device in request["DeviceIDs"]] == list(gpus)
    given_twice = [name for name in (word.partition("=")[0] for word in body["Env"]) if name in spec.env]
    assert sorted(given_twice) == sorted(spec.env)


@pytest.mark.security_case("command injection through every string field (shell metacharacters, newlines, unicode)")
@pytest.mark.parametrize("name", ["docker", "process"])
def test_no_shell_of_the_host_ever_reads_a_text_of_a_spec(
    request: pytest.FixtureRequest, name: str, tmp_path: Path
) -> None:
    """Words for a shell stand in the command, the variables, the secrets, the names and the labels of a spec.

    Refused: each arrives in the container as it is, letter by letter, and nothing of it is run on the host.
    Evidence: arguments and variables as the program in the container sees them; a file that would be there if any
        had been run.
    """
    canary = tmp_path / "canary"
    words = [word.format(canary=canary) for word in NASTY]
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], [os.environ[f'A{n}'] for n in range(%d)]]))"
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    os.chown(workspace, *run_as())
    spec = parse_spec(
        {
            "image": PYTHON,
            "command": ["python", "-X", "utf8", "-c", show % len(words), *words],
            "env": {f"A{number}": word for number, word in enumerate(words[::2])},
            "secrets": {f"A{number + len(words[::2])}": word for number, word in enumerate(words[1::2])},
            "labels": {"jobqueue.node": "other", "a": words[0]},
            "name": f"$(touch {canary})",
            "memory": 256 * MIB,
        }
    )
    url = request.getfixturevalue("engine").url if name == "docker" else None
    runtime = open_runtime(name, state_dir=tmp_path / "state", engine_url=url)  # type: ignore[arg-type]
    runtime.check()
    container = runtime.start(of_spec(spec, workspace))
    try:
        how, reader = run(container)
        assert how.code == 0, reader.text("stderr")
        arguments, variables = json.loads(reader.text())
        assert arguments == words
        assert variables == [*words[::2], *words[1::2]]
        (found,) = runtime.find(NODE)
        assert found.labels.node_id == NODE
    finally:
        container.remove()
        runtime.close()
    assert not canary.exists()


@pytest.mark.security_case("command injection: NUL and half characters")
@pytest.mark.parametrize("text", ["a\0b", "\0", "\ud800"])
@pytest.mark.parametrize(
    "field", ["command", "env", "secrets", "name", "outputs", "labels", "image", "idempotency_key"]
)
def test_what_is_no_text_is_refused_in_every_field(field: str, text: str) -> None:
    """A NUL ends a text early for the kernel; half a character cannot be written down.

    Refused: the whole spec, by the name of the field.
    Evidence: the error of `parse_spec` for each field that holds texts.
    """
    shaped = {"command": ["true", text], "outputs": [text]}
    value = shaped.get(field, {"A": text} if field in ("env", "secrets", "labels") else text)
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({**SMALL, field: value})
    assert any(problem.path.startswith(field) for problem in caught.value.problems)


@pytest.mark.security_case("command injection: no shell in the product")
def test_no_program_is_started_through_a_shell() -> None:
    """A text of a message becomes part of a line that a shell of the host reads.

    Refused: the product starts programs by lists of words alone.
    Evidence: every call in its source: no `shell=True`, no `os.system`, no `os.popen`, no `eval` or `exec`.
    """
    found = []
    files = [file for part in ("jobqueue", "workers", "producers") for file in (ROOT / part).rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                shell = [word for word in node.keywords if word.arg == "shell"]
                if shell or name in ("os.system", "os.popen", "eval", "exec", "subprocess.getoutput"):
                    found.append(f"{file.name}:{node.lineno}: {name}")
    assert len(files) > 150
    assert found == []


POLICY = Policy(
    images=("python:3*", "registry.example.org/team/*"),
    networks=("none",),
    max_timeout=timedelta(days=2),
    log_limit_bytes=MIB,
)


@pytest.mark.security_case("image name tricks")
@pytest.mark.parametrize(
    "image",
    [
        "python:3/evil/image:1",
        "python:3.12/x",
        "evil/python:3.12",
        "registry.example.org.evil.org/team/x",
        "registry.example.org:5000/team/x",
        "registry.example.org@evil.org/team/x",
        "evil.org/registry.example.org/team/x",
        "http://registry.example.org/team/x",
        "--privileged",
        "-v",
        "../python:3.12",
        "/python:3.12",
        "Python:3.12",
        "python:3.12 --privileged",
        "python:3.12\n",
        "python:3.12@sha256:abc",
        "python:3.12@md5:00000000000000000000000000000000",
        "",
    ],
)
def test_a_name_that_only_looks_like_an_allowed_image_is_refused(image: str) -> None:
    """The name of an image looks like one that the node allows, and is one of somebody else's registry, or an option.

    Refused: as no image at all, or by the node's patterns; one without a slash covers no other registry.
    Evidence: the error of `parse_spec`, or the verdict of the node, for each name.

    Red before: `python:3*` covered `python:3/evil/image:1`, an image of a machine that is called python.
    """
    try:
        spec = parse_spec({**SMALL, "image": image})
    except InvalidSpec:
        return
    outcome = refuse(spec, policy=POLICY, offer=Offer(cpus=4, memory_bytes=2**40, disk_bytes=2**40))
    assert outcome is not None
    assert outcome.reason is Reason.IMAGE_REFUSED


def test_images_that_the_patterns_name_are_allowed() -> None:
    offer = Offer(cpus=4, memory_bytes=2**40, disk_bytes=2**40)
    for image in ("python:3.12", "python:3", "registry.example.org/team/deep/image:1", f"python:3@sha256:{'0' * 64}"):
        assert refuse(parse_spec({**SMALL, "image": image}), policy=POLICY, offer=offer) is None


def test_labels_of_a_container_are_the_nodes_own(tmp_path: Path) -> None:
    spec = parse_spec({**SMALL, "labels": {"jobqueue.token": "9", "x": "y"}})
    labels = make_create_body(of_spec(spec, tmp_path))["Labels"]
    assert labels["jobqueue.token"] == "7"
    assert labels.keys() == LABELS


def test_a_plan_has_no_place_for_an_option() -> None:
    assert set(inspect.signature(Plan).parameters) == {
        *("labels", "image", "command", "env", "workspace", "inputs", "resources", "gpus", "network", "pids")
    }
    assert set(inspect.signature(Labels).parameters) == {"experiment_id", "attempt", "token", "node_id"}
    assert set(inspect.signature(Resources).parameters) == {
        *("cpus", "memory_bytes", "disk_bytes", "shm_bytes", "gpus", "gpu_memory_bytes")
    }
