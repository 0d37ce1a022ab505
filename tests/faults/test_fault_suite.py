"""A short run of the fault suite: a whole site, a few faults, and nothing that must not be."""

import shutil
import tempfile
from pathlib import Path

import pytest

from faults.checker import is_void, judge
from faults.driver import Wanted, run
from faults.history import load_history
from faults.table import make_table
from faults.world import Shape


@pytest.mark.usefixtures("as_users_wait")
@pytest.mark.parametrize("broker", ["rabbitmq", "redis", "sqs"])
def test_a_site_that_is_broken_all_the_time_keeps_every_promise(broker: str) -> None:
    # Kept where it fails, with every log.
    folder = Path(tempfile.mkdtemp(prefix="jobqueue-faults-"))
    wanted = Wanted(shape=Shape(broker=broker), seed=1, count=10, fault_count=5, is_gentle=True)
    facts = load_history(run(wanted, folder))
    violations = judge(facts)
    assert violations == [], f"{make_table(facts, violations)}\n{folder}"
    assert not is_void(facts), make_table(facts, violations)
    shutil.rmtree(folder)
