"""How results are written: columns, JSON, names."""

import json
import os
from datetime import UTC, datetime, timedelta

import click
import pytest
from click.testing import CliRunner, Result

from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Reason, State
from jobqueue.registry.base import PastAttempt, Record, Submission
from jobqueue.resources import Resources
from producers.cli.output import describe_age, describe_span, format_option, write_fields, write_rows
from producers.cli.records import as_fields, as_json, as_row

_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _record(**changes: object) -> Record:
    submission = Submission(
        id=ExperimentId("exp-01arz3ndektsv4rrffq69g5fav"),
        queue="default_cpu",
        project="default",
        resources=Resources(cpus=2, memory_bytes=2**31, disk_bytes=10 * 2**30, shm_bytes=2**26),
        submitted_at=_AT,
        expires_at=_AT + timedelta(days=7),
        name="digits",
        labels={"team": "vision"},
        message=b"secret",
    )
    return Record(submission=submission, **changes)  # type: ignore[arg-type]


def _written(*arguments: str, rows: list[dict[str, str]]) -> Result:
    @click.command()
    @format_option
    def command(form: str) -> None:
        write_rows(form, rows=rows, objects=rows, name="ID")

    return CliRunner().invoke(command, arguments)


_ROWS = [{"ID": "a", "STATE": "QUEUED"}, {"ID": "b" * 300, "STATE": "FAILED"}]


def test_a_table_is_aligned_and_not_cut_off_a_terminal() -> None:
    assert _written(rows=_ROWS).stdout.splitlines() == [
        "ID".ljust(302) + "STATE",
        "a".ljust(302) + "QUEUED",
        "b" * 300 + "  FAILED",
    ]


def test_a_terminal_that_is_too_narrow_is_spared_columns_that_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"ID": letter * 20, "UNACKED": "-", "STATE": "QUEUED", "OWNER": "-"} for letter in "ab"]

    def lines(columns: int) -> list[str]:
        monkeypatch.setattr("producers.cli.output.shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
        return _written(rows=rows).stdout.splitlines()

    assert lines(30)[0] == "ID".ljust(22) + "UNACKED  STATE   OWNER", "no terminal"
    monkeypatch.setattr("producers.cli.output._is_terminal", lambda: True)
    assert lines(80)[0] == "ID".ljust(22) + "UNACKED  STATE   OWNER"
    assert lines(30) == ["ID".ljust(22) + "STATE", "a" * 20 + "  QUEUED", "b" * 20 + "  QUEUED"]
    assert lines(25)[1] == "a" * 20 + "  QU…"


def test_names_stand_one_to_a_line() -> None:
    assert _written("-o", "name", rows=_ROWS).stdout == "a\n" + "b" * 300 + "\n"


def test_json_is_json_also_when_there_is_nothing() -> None:
    assert json.loads(_written("-o", "json", rows=_ROWS).stdout) == _ROWS
    assert json.loads(_written("-o", "json", rows=[]).stdout) == []
    assert _written(rows=[]).stdout == ""


def test_an_unknown_format_is_a_usage_error() -> None:
    assert _written("-o", "yaml", rows=_ROWS).exit_code == 2


def test_control_characters_of_others_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    write_fields({"name": "a\x1b[2Jb", "nothing": ""})
    assert capsys.readouterr().out == "name  a?[2Jb\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (200_000, "2d"), (-5, "0s")],
)
def test_an_age_is_short(seconds: int, text: str) -> None:
    assert describe_span(timedelta(seconds=seconds)) == text
    assert describe_age(_AT, now=_AT + timedelta(seconds=seconds)) == text


def test_a_row_says_the_reason_with_the_exit_code() -> None:
    row = as_row(_record(state=State.FAILED, reason=Reason.EXITED_NONZERO, exit_code=3))
    assert row["REASON"] == "EXITED_NONZERO (exit code 3)"
    assert as_row(_record())["REASON"] == "-"
    assert as_row(_record(cancel_reason=Reason.CANCELLED_BY_USER))["REASON"] == "cancelling"


def test_json_holds_everything_but_the_message() -> None:
    found = as_json(_record(state=State.FAILED, reason=Reason.TIMED_OUT, detail="after 1h", started_at=_AT))
    assert "secret" not in json.dumps(found)
    assert found["reason"] == "TIMED_OUT"
    assert found["sentence"].endswith(": after 1h")
    assert found["started_at"] == "2026-01-02T03:04:05Z"
    assert found["finished_at"] is None


def test_show_tells_the_history_and_the_hint() -> None:
    past = PastAttempt(attempt=1, token=7, reason=Reason.WORKER_LOST)
    fields = as_fields(
        _record(state=State.FAILED, reason=Reason.OUT_OF_MEMORY, history=(past,), started_at=_AT, finished_at=_AT),
        outputs={"model.pt": 2048},
    )
    assert fields["attempt 1"] == "the worker was lost while it held the lease"
    assert fields["hint"]
    assert fields["outputs"] == "model.pt  2 KiB"
    assert fields["asks for"] == "2 cpus, 2 GiB memory"
