"""What goes wrong at a shell: variables that are not set, files that say something else, folders that are files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jobqueue.ids import ExperimentId
from jobqueue.registry import open_registry
from producers.cli import jobqueue

SPEC = ("--image", "python:3.12-slim")
pytestmark = pytest.mark.usefixtures("laptop_keys")


@pytest.fixture
def submit(project: str) -> Callable[..., ExperimentId]:
    return lambda *options: ExperimentId(_call("submit", *SPEC, *options, "--", "true").stdout.strip())


def _call(*words: str) -> Result:
    return CliRunner().invoke(jobqueue, words)


@pytest.mark.parametrize("text", ["", " "])
@pytest.mark.parametrize("command", ["show", "why", "logs", "wait", "cancel", "get"])
def test_an_empty_text_means_no_experiment(submit: Callable[..., ExperimentId], command: str, text: str) -> None:
    newest = submit()

    result = _call(command, text)

    assert result.exit_code == 2
    assert "means no experiment" in result.stderr
    assert not open_registry("memory://").experiments.get(newest).is_cancelled


def test_an_empty_folder_is_not_the_current_one(project: str) -> None:
    made = _call("submit", *SPEC, "--", "true").stdout.strip()
    _call("cancel", made)

    result = _call("get", made, "")

    assert result.exit_code == 2
    assert "folder: is empty" in result.stderr


def test_active_ones_are_found_below_many_that_are_over(submit: Callable[..., ExperimentId], project: str) -> None:
    active = submit()
    for _ in range(5):
        _call("cancel", submit())

    assert _call("ls", "--project", project, "--active", "-n", "1", "-o", "name").stdout.split() == [active]
    assert _call("ls", "--project", project, "--active", "-o", "name").stdout.split() == [active]


@pytest.mark.parametrize(
    ("name", "content"), [("spec.toml", b"\xff"), ("spec.json", b"[" * 100_000), ("spec.json", b"{}" + b" " * 2**20)]
)
def test_a_file_that_is_no_spec_is_said_to_be_none(project: str, name: str, content: bytes) -> None:
    Path(name).write_bytes(content)

    result = _call("submit", "-f", name)

    assert result.exit_code == 2
    assert f"{name}: not TOML or JSON: " in result.stderr


def test_a_file_without_an_end_is_not_read_to_it(project: str) -> None:
    assert "longer than" in _call("submit", "-f", "/dev/zero").stderr


def test_a_file_with_a_list_for_pairs_is_told_as_a_wrong_field(project: str) -> None:
    Path("spec.toml").write_text('image = "x:1"\ncommand = "true"\nenv = ["A"]\n')

    result = _call("submit", "-f", "spec.toml", "--env", "B=1")

    assert result.exit_code == 2
    assert "env: " in result.stderr


def test_a_file_may_name_places_in_the_home_folder(
    project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    (home / "work" / "train.py").write_text("")
    monkeypatch.setenv("HOME", str(home))
    fields = {"image": "x:1", "command": "true", "workspace": "~/work", "inputs": {"data": "~/work/train.py"}}
    Path("specs").mkdir()
    Path("specs/spec.json").write_text(json.dumps(fields))

    result = _call("submit", "-f", "specs/spec.json")

    assert result.exit_code == 0, result.stderr


def test_an_option_wins_over_the_other_name_of_its_field_in_a_file(project: str) -> None:
    Path("spec.toml").write_text('image = "x:1"\ncommand = "true"\nram = "1GiB"\n')

    made = _call("submit", "-f", "spec.toml", "--memory", "2GiB").stdout.strip()

    assert json.loads(_call("show", made, "-o", "json").stdout)["resources"]["memory_bytes"] == 2 * 2**30


def test_an_empty_workspace_in_a_file_is_not_the_folder_of_the_file(project: str) -> None:
    Path("spec.toml").write_text('image = "x:1"\ncommand = "true"\nworkspace = ""\n')

    result = _call("submit", "-f", "spec.toml")

    assert result.exit_code == 2
    assert "workspace: " in result.stderr


def test_the_log_of_what_has_not_started_says_where_it_is(submit: Callable[..., ExperimentId]) -> None:
    waiting = submit()

    result = _call("logs", waiting)

    assert (result.exit_code, result.stdout) == (0, "")
    assert "QUEUED: waiting in" in result.stderr
    _call("cancel", waiting)
    assert "CANCELLED: " in _call("logs", "-f", waiting).stderr
