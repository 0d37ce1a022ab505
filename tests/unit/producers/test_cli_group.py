"""The command group: lazy loading, errors as messages and exit codes."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from jobqueue import errors
from producers.cli import jobqueue
from producers.cli.group import LazyGroup, exit_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidSpec([errors.Problem(path="cpus", message="must be more than 0")]), 2),
        (errors.InvalidSetting("wrong"), 2),
        (errors.IdempotencyMismatch("used before"), 2),
        (errors.BrokerUnavailable("down"), 69),
        (errors.RegistryUnavailable("down"), 69),
        (errors.StoreUnavailable("down"), 69),
        (errors.ExperimentFailed("exited"), 100),
        (errors.ExperimentTimeout("not yet"), 101),
        (errors.NotFound("nothing"), 102),
        (errors.NoSuchQueue("no queue"), 102),
        (errors.ExperimentCancelled("gone"), 103),
        (errors.RuntimeFailure("engine"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_error_has_its_exit_code(error: errors.JobqueueError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize("name", jobqueue.list_commands(click.Context(jobqueue)))
def test_no_sentence_of_a_help_is_cut_at_80_columns(name: str) -> None:
    help_of = CliRunner().invoke(jobqueue, [name, "--help"], env={"COLUMNS": "80"})
    assert help_of.exit_code == 0
    assert "..." not in help_of.stdout.partition("Commands:")[2]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colours_gets_none(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group = _group(errors.NotFound("nothing"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[31m" in CliRunner().invoke(group, ["fail"], color=True).stderr
    monkeypatch.setenv(name, value)
    assert CliRunner().invoke(group, ["fail"], color=True).stderr == "error: nothing\n"


def _group(error: BaseException) -> LazyGroup:
    @click.command()
    def fail() -> None:
        raise error

    group = LazyGroup(
        "group",
        entries={},
        params=[click.Option(["--debug"], is_flag=True)],
    )
    group.add_command(fail)
    return group


def test_an_error_is_a_message_and_a_hint_without_a_traceback() -> None:
    result = CliRunner().invoke(_group(errors.NotFound("no experiment 'x'", hint="`jobqueue ls` lists them")), ["fail"])
    assert result.exit_code == 102
    assert result.stdout == ""
    assert result.stderr == "error: no experiment 'x'\nhint: `jobqueue ls` lists them\n"


def test_an_error_is_told_with_its_notes() -> None:
    error = errors.BrokerUnavailable("it is away", hint="look at it")
    error.add_note("exp-1 may still be started")
    result = CliRunner().invoke(_group(error), ["fail"])
    assert result.stderr.splitlines()[:2] == ["error: it is away", "note: exp-1 may still be started"]


def test_a_failed_experiment_shows_its_last_lines() -> None:
    error = errors.ExperimentFailed(
        "it exited with 1", last_lines=("Traceback", "ValueError: x"), hint="look at the log"
    )
    result = CliRunner().invoke(_group(error), ["fail"])
    assert result.stderr.splitlines()[1:3] == ["  | Traceback", "  | ValueError: x"]


def test_what_others_wrote_cannot_drive_the_terminal() -> None:
    error = errors.ExperimentFailed("a\x1b]0;b", last_lines=("\x1b[2Jgone",))
    result = CliRunner().invoke(_group(error), ["fail"])
    assert "\x1b" not in result.stderr
    assert "  | ?[2Jgone" in result.stderr


def test_a_disk_that_refuses_is_no_fault_of_our_own() -> None:
    error = FileExistsError(17, "File exists", "results")
    result = CliRunner().invoke(_group(error), ["fail"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "error: File exists: results"
    assert "fault of jobqueue" not in result.stderr
    assert "hint: name another path" in result.stderr


@pytest.mark.parametrize("error", [errors.BrokerUnavailable("gone"), errors.RegistryUnavailable("gone")])
def test_only_what_is_not_set_is_said_to_need_setting_up(
    monkeypatch: pytest.MonkeyPatch, error: errors.JobqueueError
) -> None:
    there = "BROKER" if isinstance(error, errors.BrokerUnavailable) else "REGISTRY"
    for name in ("BROKER", "REGISTRY"):
        monkeypatch.delenv(f"JOBQUEUE_{name}_URL", raising=False)
    assert "start everything on this machine" in CliRunner().invoke(_group(error), ["fail"]).stderr
    monkeypatch.setenv(f"JOBQUEUE_{there}_URL", "redis://registry.example.org")
    assert f"is JOBQUEUE_{there}_URL right?" in CliRunner().invoke(_group(error), ["fail"]).stderr


def test_debug_lets_the_error_through() -> None:
    result = CliRunner().invoke(_group(errors.NotFound("nothing")), ["--debug", "fail"])
    assert isinstance(result.exception, errors.NotFound)


def test_a_fault_of_our_own_says_how_to_see_more() -> None:
    result = CliRunner().invoke(_group(ZeroDivisionError("x")), ["fail"])
    assert result.exit_code == 1
    assert "ZeroDivisionError: x" in result.stderr
    assert "--debug" in result.stderr


def test_ctrl_c_is_not_a_fault() -> None:
    result = CliRunner().invoke(_group(KeyboardInterrupt()), ["fail"])
    assert result.exit_code == 130


def test_a_misspelt_command_is_a_usage_error_with_the_close_one() -> None:
    result = CliRunner().invoke(jobqueue, ["lss"])
    assert result.exit_code == 2
    assert "did you mean 'ls'?" in result.stderr


def test_the_help_names_every_command_and_loads_none() -> None:
    result = CliRunner().invoke(jobqueue, ["--help"])
    assert result.exit_code == 0
    commands = "run submit ls show why logs wait cancel get queues keys reports doctor dev"
    assert all(f"\n  {name} " in result.stdout for name in commands.split())


def test_importing_the_command_line_loads_no_command_and_no_heavy_library() -> None:
    code = "import sys, producers.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in found if name.startswith("producers.cli.")] == ["producers.cli.group"]
    assert not {"celery", "pydantic", "rich", "docker"} & set(found)


@pytest.mark.parametrize("name", list(jobqueue.entries))  # type: ignore[attr-defined]
def test_every_command_can_be_loaded_and_explains_itself(name: str) -> None:
    result = CliRunner().invoke(jobqueue, [name, "--help"])
    assert result.exit_code == 0, result.stderr
    assert "Usage:" in result.stdout


@pytest.mark.parametrize("port", ["0", "-1", "65536", "five"])
def test_a_port_that_is_none_is_a_usage_error(port: str) -> None:
    assert CliRunner().invoke(jobqueue, ["dev", "--flower-port", port]).exit_code == 2
