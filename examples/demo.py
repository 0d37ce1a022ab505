"""A real experiment from its submission to its outputs, on this machine alone: `make demo`.

It needs no root, no server and no container engine: an embedded broker and one node run in a temporary folder for as
long as this takes. The experiment trains a classifier of handwritten digits. With a container engine that has the image
`DEMO_IMAGE` (python:3.12-slim when not set) it runs in a container, else as a confined process.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from producers.client import Client
    from producers.handle import Experiment

DIGITS = Path(__file__).resolve().parent / "digits"
IMAGE = os.environ.get("DEMO_IMAGE", "python:3.12-slim")
ENGINE_TIMEOUT_SECONDS = 60
NODE_START_SECONDS = 60
END_SECONDS = 120
BAR_WIDTH = 24
COMMAND = os.path.relpath(Path(sys.executable).with_name("jobqueue"))
IS_TERMINAL = sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def main() -> int:
    """Run the demo; return 0 when the experiment succeeded."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jobqueue-demo-") as name:
        folder = Path(name)
        runtime = choose_runtime()
        use_private_state(folder, runtime=runtime)
        with running_system(folder) as client:
            experiment = submit(client, pack(folder / "workspace", runtime=runtime), runtime=runtime)
            is_good = follow(experiment)
            if is_good:
                show_outputs(experiment, folder / "outputs")
    say("stopped", f"nothing is left running; it took {time.monotonic() - began:.0f} s")
    say("next", f"{COMMAND} dev    and, in another terminal:")
    say("", f"{COMMAND} run --image python:3.12-slim -- python -c 'print(6 * 7)'")
    return 0 if is_good else 1


def choose_runtime() -> str:
    """Return `docker` when an engine answers and can have the image, else `process`; say why."""
    from producers.cli.doctor import find_engine

    engine = find_engine()
    if not engine:
        say("runtime", "process: no container engine answers here, so a confined process stands in for the container")
    elif not has_image():
        say("runtime", f"process: {engine} answers, but the image {IMAGE} is not there and cannot be pulled")
        say("", "(DEMO_IMAGE names another image that holds Python)")
    else:
        say("runtime", f"docker: {engine}, image {IMAGE}")
        return "docker"
    return "process"


def has_image() -> bool:
    """Tell whether the engine has the image or can pull it."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    with closing(docker.from_env(timeout=ENGINE_TIMEOUT_SECONDS)) as engine:
        try:
            engine.images.get(IMAGE)
        except ImageNotFound:
            say("image", f"pulling {IMAGE}")
            try:
                engine.images.pull(IMAGE)
            except (DockerException, OSError):
                return False
    return True


def use_private_state(folder: Path, *, runtime: str) -> None:
    """Keep everything in `folder`, whatever this machine's own settings are."""
    for variable in [name for name in os.environ if name.startswith("JOBQUEUE_")]:
        del os.environ[variable]
    os.environ["JOBQUEUE_STATE_DIR"] = str(folder / "state")
    os.environ["JOBQUEUE_CACHE_DIR"] = str(folder / "cache")
    os.environ["JOBQUEUE_RUNTIME"] = runtime
    os.chdir(folder)


@contextmanager
def running_system(folder: Path) -> Iterator["Client"]:
    """Run the embedded broker and one node, and give a client of them; stop both at the end, in order."""
    from jobqueue.config import Settings
    from producers.cli.dev import node_process, prepare, wait_until_served
    from producers.cli.embedded import embedded_server
    from producers.client import Client

    settings = Settings()
    log = folder / "node.log"
    with ExitStack() as running:
        running.enter_context(embedded_server(settings))
        prepare(settings)
        node = running.enter_context(node_process(settings, log=log))
        client = running.enter_context(closing(Client(settings)))
        until = time.monotonic() + NODE_START_SECONDS
        if not wait_until_served(settings, is_over=lambda: node.poll() is not None or time.monotonic() > until):
            sys.exit(f"the node did not start:\n{log.read_text(errors='replace')[-4000:]}")
        say("started", f"broker and registry on {settings.embedded_socket}, one node (celery -A jobqueue worker)")
        yield client


def pack(folder: Path, *, runtime: str) -> Path:
    """Make the workspace: the training script; for a container also the data, since its image holds Python alone."""
    folder.mkdir()
    shutil.copy(DIGITS / script(runtime), folder)
    if runtime == "docker":
        from sklearn.datasets import load_digits

        images, digits = load_digits(return_X_y=True)
        rows = (
            ",".join(f"{value:.0f}" for value in (*image, digit)) for image, digit in zip(images, digits, strict=True)
        )
        (folder / "digits.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def script(runtime: str) -> str:
    """Return the training script that can run there."""
    return "train_plain.py" if runtime == "docker" else "train.py"


def submit(client: "Client", workspace: Path, *, runtime: str) -> "Experiment":
    """Submit the training; this is all that a researcher writes."""
    python = "python" if runtime == "docker" else sys.executable
    experiment = client.submit(
        image=IMAGE,
        command=[python, script(runtime), "--seed", "7", "--pause", "0.3"],
        workspace=workspace,
        outputs=["outputs/"],
        cpus=1,
        memory="1GiB",
        disk="1GiB",
        timeout="2m",
        name="digits",
    )
    say("submitted", f"{experiment.id}: {script(runtime)}, a classifier of handwritten digits")
    return experiment


def follow(experiment: "Experiment") -> bool:
    """Show the log and the progress as they come; return whether it succeeded."""
    from jobqueue.errors import ExperimentFailed, JobqueueError

    shown: dict[str, object] = {}
    for line in experiment.logs(follow=True):
        if not line.startswith("::jobqueue"):
            say("log", line)
        shown = show_progress(experiment, shown)
    show_progress(experiment, shown)
    try:
        result = experiment.result(timeout=END_SECONDS)
    except ExperimentFailed as error:
        say("failed", str(error))
        return False
    except JobqueueError as error:
        say("not finished", str(error))
        return False
    say("result", f"{experiment.state}: accuracy {result['accuracy']:.3f} after {result['epochs']} epochs")
    return True


def show_progress(experiment: "Experiment", shown: dict[str, object]) -> dict[str, object]:
    """Draw how far the registry says it is, unless that has been shown; return what has been shown by now."""
    progress = experiment.progress
    share = progress.get("progress")
    if isinstance(share, int | float) and progress != shown:
        bar = ("#" * round(share * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
        say("progress", f"[{bar}] {share:4.0%}  accuracy {progress.get('accuracy')}")
    return progress


def show_outputs(experiment: "Experiment", folder: Path) -> None:
    """Download what it left, and list it."""
    for path in experiment.outputs.download(folder):
        say("output", f"{path.relative_to(folder)}  {path.stat().st_size:,} bytes")


def say(what: str, text: str) -> None:
    """Write one line."""
    label = f"\033[1m{what:10}\033[0m" if IS_TERMINAL else f"{what:10}"
    print(f"{label} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
