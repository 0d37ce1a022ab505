"""What an experiment could reach on this machine, for `jobqueue doctor --probe`: the compute-node side tries it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from producers.cli.devices import Told

_WITHIN: Final = timedelta(minutes=10)
_PROGRAM: Final = "workers.attempt.reach"


def describe_gaps() -> Told | None:
    """Return what keeps a worker from starting here, with a fix, or what it would only tell; None when nothing."""
    told = _ask("--notice")
    if told["error"]:
        return Told(text=told["error"], fix="no worker starts here before that is mended")
    return Told(text=told["notice"]) if told["notice"] else None


def describe_reach() -> Iterator[Told]:
    """Yield a line for each thing that the probe has tried from inside; one with a fix for what it has reached."""
    told = _ask()
    if told["error"]:
        yield Told(text=f"no probe could be started: {told['error']}", fix="mend that, and try again")
        return
    reached = [row for row in told["rows"] if not row["is_refused"]]
    for row in told["rows"]:
        if row["is_refused"]:
            yield Told(text=f"{row['what']}: refused ({row['answer']})")
    for row in reached:
        yield Told(
            text=f"{row['what']}: REACHED ({row['answer']})", fix="let nobody run anything here before that ends"
        )
    weak = f"; {told['notice']}" if told["notice"] else ""
    yield Told(text=f"{told['runtime']}: {len(told['rows'])} things tried, {len(reached)} reached{weak}")


def _ask(*options: str) -> dict[str, Any]:
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", _PROGRAM, *options],
            capture_output=True,
            text=True,
            timeout=_WITHIN.total_seconds(),
            check=True,
        )
        told: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"error": f"{type(error).__name__} (python -m {_PROGRAM} says more)"}
    return told
