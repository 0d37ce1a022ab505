"""How the log lines of a worker, and of the other processes of its node, look."""

import json
import logging
import sys
from typing import Literal

import pytest

from workers.delivery.lines import make_formatter
from workers.node.plain_lines import PlainLines


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


def test_plain_lines_have_the_event_its_fields_and_the_traceback_and_drive_no_terminal() -> None:
    try:
        fail({})
    except KeyError:
        record = logging.makeLogRecord(
            {"msg": "guard.failed", "levelname": "ERROR", "exc_info": sys.exc_info(), "error": "\x1b[2Jgone", "pid": 7}
        )
    line, *trace = PlainLines().format(record).splitlines()
    assert line.endswith("Z [error] guard.failed error=?[2Jgone pid=7")
    assert trace[-1] == "KeyError: 0"
    told = json.loads(PlainLines("json").format(record))
    assert {told.pop("timestamp")[-1], told.pop("exception").splitlines()[-1]} == {"Z", "KeyError: 0"}
    assert told == {"event": "guard.failed", "level": "error", "error": "\x1b[2Jgone", "pid": 7}
