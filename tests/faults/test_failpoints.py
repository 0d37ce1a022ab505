"""A worker is killed at each step of an attempt, and every promise holds."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.failpoints import POINTS, Follower, Point, open_dying, try_point
from faults.trials import Stage

# That another node takes over costs a worker more each time; `make faults-failpoints` does it for all.
TRIALS = [
    *((point, "itself") for point in POINTS),
    *((point, "another") for point in POINTS if point.name == "marked"),
]


@pytest.fixture(scope="module")
def stage(share: Callable[..., Any]) -> Iterator[Stage]:
    """A site on RabbitMQ for the whole module."""
    # Kept where something fails, with every log.
    folder = Path(tempfile.mkdtemp(prefix="jobqueue-failpoints-"))
    with share("stage", open_dying(folder, broker="rabbitmq")) as opened:
        yield opened
    if not (folder / "failed").exists():
        shutil.rmtree(folder)


@pytest.mark.parametrize(("point", "follower"), TRIALS, ids=lambda each: getattr(each, "name", each))
def test_a_worker_that_dies_at_any_step_breaks_no_promise(stage: Stage, point: Point, follower: Follower) -> None:
    path = stage.world.folder / f"{point.name}-{follower}.jsonl"
    violations = try_point(stage, point, follower=follower, path=path)
    if violations:
        (path.parent / "failed").touch()
    assert violations == [], path
