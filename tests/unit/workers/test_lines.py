"""How a worker's log lines look."""

import logging
import sys
from typing import Literal

import pytest

from workers.delivery.lines import make_formatter


def fail(env: dict[str, str]) -> None:
    raise KeyError(len(env))


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_local_variable_of_a_failed_step_reaches_the_log(form: Literal["text", "json"]) -> None:
    env = {"WANDB": "s3cr3t" + str(len("value"))}  # a traceback shows the lines of the source
    try:
        fail(env)
    except KeyError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "attempt.failed", (), sys.exc_info())
    line = make_formatter(form).format(record)
    assert "attempt.failed" in line
    assert "KeyError" in line
    assert "s3cr3t5" not in line
