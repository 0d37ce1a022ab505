"""The kernel is light: a notebook that imports it pays for what it uses."""

import subprocess
import sys

HEAVY = ("pydantic", "google.protobuf", "cryptography", "celery", "kombu", "docker", "jobqueue.")


def test_importing_the_package_loads_nothing_of_it() -> None:
    code = f"import sys, jobqueue; print([name for name in sys.modules if name.startswith({HEAVY!r})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_words_are_there_and_a_wrong_one_is_an_attribute_error() -> None:
    code = (
        "import jobqueue; jobqueue.State.QUEUED; jobqueue.InvalidSpec; jobqueue.Settings\n"
        "assert not hasattr(jobqueue, 'submit')\n"
        "assert {'submit_experiment', 'get'} <= set(dir(jobqueue))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
