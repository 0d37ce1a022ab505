"""What an image brings, and what leads to the engine itself: a real engine, a real registry of images."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from services.engine import Engine
from services.image_registry import ImageRegistry
from services.images import BUSYBOX
from services.runtimes import MIB, NODE, run

from jobqueue.errors import ImageRefused
from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.docker import DockerRuntime
from workers.attempt.runtimes.hardening import NOBODY

ROOT = Path(__file__).parents[2]
CONNECT = """
import os, socket, sys
os.setgroups([])
os.setgid({nobody})
os.setuid({nobody})
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture
def runtime(engine: Engine) -> Iterator[DockerRuntime]:
    runtime = DockerRuntime(engine.url)
    yield runtime
    runtime.close()


def build(engine: Engine, recipe: str, name: str) -> None:
    for step in engine.client.api.build(fileobj=io.BytesIO(recipe.encode()), tag=name, decode=True, rm=True):
        assert "error" not in step, step


def make_plan(folder: Path, image: str, *command: str) -> Plan:
    labels = Labels(experiment_id="exp-cases", attempt=1, token=1, node_id=NODE)
    asked = Resources(cpus=1, memory_bytes=128 * MIB, disk_bytes=MIB, shm_bytes=0)
    return Plan(labels=labels, image=image, command=command, env={}, workspace=folder, inputs={}, resources=asked)


@pytest.mark.security_case("image name tricks: digest mismatch")
def test_a_digest_that_the_repository_does_not_have_is_refused(
    image_registry: ImageRegistry, runtime: DockerRuntime
) -> None:
    """The name of an image that is trusted carries the digest of another one.

    Refused: no image is fetched under it; the experiment ends with IMAGE_REFUSED.
    Evidence: a real registry of images that has both, each in a repository of its own, and none of the digest zero.
    """
    other = image_registry.push(BUSYBOX, "theirs").partition("@")[2]
    ours = image_registry.push(BUSYBOX, "ours")
    assert runtime.resolve(ours) == ours
    with pytest.raises(ImageRefused):
        runtime.resolve(f"{image_registry.address}/ours@sha256:{'0' * 64}")
    with pytest.raises(ImageRefused):
        runtime.resolve(f"{image_registry.address}/nobodys:1@{other}")


@pytest.mark.security_case("disk filler through an image: VOLUME over the node's folders")
@pytest.mark.parametrize("volume", ["/inputs", "/workspace/deep", "/dev/volume"])
def test_a_volume_that_an_image_declares_gives_it_no_folder_of_the_host(
    engine: Engine, runtime: DockerRuntime, tmp_path: Path, volume: str
) -> None:
    """An image declares a volume where the node's own folders are: the engine makes an unbounded folder on its disk.

    Refused: the image, with the volume's name; volumes elsewhere are bounded memory.
    Evidence: the error of the start on a real engine, and that it has neither container nor volume afterwards.

    Red before: the engine made a folder of its own for it, which no limit covered.
    """
    name = "jobqueue-test/volume:1"
    build(engine, f"FROM {BUSYBOX}\nVOLUME {volume}\n", name)
    try:
        with pytest.raises(ImageRefused, match=volume):
            runtime.start(make_plan(tmp_path, runtime.resolve(name), "true"))
        assert runtime.find(NODE) == []
        assert engine.client.api.volumes()["Volumes"] in (None, [])
    finally:
        engine.client.images.remove(name, force=True)


@pytest.mark.security_case("env override of loader or JOBQUEUE_ variables, in the image; ONBUILD, USER root")
def test_what_an_image_says_of_devices_users_and_builds_has_no_effect(
    engine: Engine, runtime: DockerRuntime, tmp_path: Path
) -> None:
    """An image asks in its own variables for all devices and for a library in every program, and to run as root.

    Refused: the variables are gone or the node's own, the user is not root, and nothing of ONBUILD is run.
    Evidence: variables, user and files as the program in the container sees them.
    """
    name = "jobqueue-test/greedy:1"
    variables = "LD_PRELOAD=/evil.so LD_AUDIT=/evil.so NVIDIA_VISIBLE_DEVICES=all NVIDIA_MIG_CONFIG_DEVICES=all"
    build(engine, f"FROM {BUSYBOX}\nENV {variables} KEPT=yes\nUSER root\nONBUILD RUN touch /built\n", name)
    show = "echo $KEPT; id -u; env | grep -E 'LD_|NVIDIA'; ls /built"
    container = runtime.start(make_plan(tmp_path, runtime.resolve(name), "sh", "-c", show))
    try:
        _, reader = run(container)
        assert reader.text().split() == ["yes", str(NOBODY), "NVIDIA_VISIBLE_DEVICES=void"]
    finally:
        container.remove()
        engine.client.images.remove(name, force=True)


@pytest.mark.security_case("docker socket: another user of the machine")
def test_the_engine_answers_to_no_other_user(engine: Engine) -> None:
    """A process of another user of the node, such as an experiment that got out, commands the engine.

    Refused: the engine's socket is not for it.
    Evidence: the error of a connection by nobody to the socket that the worker uses.
    """
    words = [sys.executable, "-c", CONNECT.format(nobody=NOBODY), str(engine.socket)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "PermissionError"


@pytest.mark.security_case("docker socket: never mounted")
def test_the_engines_socket_is_the_nodes_alone() -> None:
    """The engine's socket is mounted into a container, from where it is root on the machine.

    Refused: nothing that is shipped mounts it but the node's own service of the compose file.
    Evidence: every service of the compose file, every template of the chart, and the source of the create request.
    """
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    having = [name for name, service in services.items() if "docker.sock" in str(service)]
    assert having == ["node"]
    chart = [file for file in (ROOT / "charts").rglob("*") if file.is_file()]
    product = [*(ROOT / "workers").rglob("*.py"), *(ROOT / "jobqueue").rglob("*.py"), *chart]
    assert len(chart) > 3
    # The engine's own client, and the checklist that tries from inside whether it is there.
    known = {"engine.py", "reach.py", "checklist.py"}
    assert [file for file in product if "docker.sock" in file.read_text() and file.name not in known] == []
