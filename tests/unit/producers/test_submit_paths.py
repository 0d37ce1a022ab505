"""Paths that lead nowhere, in every way that there is: told with all other wrong fields, before anything is read."""

import os
from pathlib import Path
from typing import Any

import pytest

from jobqueue.errors import InvalidSpec
from producers.client import Client

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
SPEC = {"image": "python:3.12-slim", "command": "true"}
NOT_UTF8 = os.fsdecode(b"\xff\xfe")
NOWHERE = ["", "  ", "\0", "/" + "a" * 5000, "a/" * 3000, "~no-such-user/data", "nowhere", NOT_UTF8, 5, b"/tmp"]


def wrong_fields(client: Client, **fields: Any) -> dict[str, str]:
    """Return what is told of fields that are wrong beside one that is wrong anyway."""
    with pytest.raises(InvalidSpec) as caught:
        client.submit(**{**SPEC, **fields}, cpus=-1)
    told = {problem.path: problem.message for problem in caught.value.problems}
    assert len(told) == len(caught.value.problems), "each field is told once"
    assert "cpus" in told
    return told


@pytest.mark.parametrize("value", NOWHERE, ids=lambda value: repr(value)[:20])
def test_a_workspace_that_leads_nowhere_is_one_wrong_field_of_several(client: Client, value: object) -> None:
    told = wrong_fields(client, workspace=value)

    assert told.keys() == {"cpus", "workspace"}
    assert "(" in told["workspace"], "it says what to do"
    assert len(told["workspace"]) < 300


@pytest.mark.parametrize(
    "value", [*NOWHERE, None, "/dev/null", "s3://[::1", "s3://", "store:../x"], ids=lambda value: repr(value)[:20]
)
def test_an_input_that_leads_nowhere_is_one_wrong_field_of_several(client: Client, value: object) -> None:
    told = wrong_fields(client, inputs={"data": value})

    assert told.keys() == {"cpus", "inputs.data"}
    assert len(told["inputs.data"]) < 300


def test_a_home_that_is_not_there_is_said_to_be_none(client: Client) -> None:
    assert "no such home folder" in wrong_fields(client, inputs={"data": "~no-such-user/x"})["inputs.data"]


def test_a_file_is_no_workspace(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text("")

    assert "name the folder it lies in" in wrong_fields(client, workspace=file)["workspace"]


def test_names_that_are_no_text_are_told_with_the_way_out_that_there_is(client: Client, tmp_path: Path) -> None:
    (tmp_path / NOT_UTF8).write_text("")

    told = wrong_fields(client, workspace=tmp_path, inputs={"data": tmp_path})

    assert "rename it, or list it in .jobqueueignore" in told["workspace"]
    assert told["inputs.data"].endswith(
        "is not UTF-8 (rename it, or send a .tar that the experiment unpacks itself)"
    ), "ignore files have no say about inputs"


def test_an_input_file_may_be_called_anything(client: Client, tmp_path: Path) -> None:
    file = tmp_path / NOT_UTF8
    file.write_text("a,b")

    client.submit(**SPEC, inputs={"data": file})


@pytest.mark.parametrize("queue", ["x_first", "x_dead", "x_reporting", "x_deferred"])
def test_a_companion_queue_is_one_wrong_field_of_several(client: Client, queue: str) -> None:
    told = wrong_fields(client, queue=queue, workspace="/nowhere")

    assert told.keys() == {"cpus", "queue", "workspace"}
    assert "leave out its ending" in told["queue"]


@pytest.mark.parametrize("queue", ["", 5, "a b", "x" * 100])
def test_a_queue_that_has_no_name_is_told_once(client: Client, queue: object) -> None:
    assert wrong_fields(client, queue=queue).keys() == {"cpus", "queue"}


def test_more_files_than_the_disk_may_hold_are_refused_before_any_is_packed(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, data = tmp_path / "work", tmp_path / "data.bin"
    (work / "frames" / "a").mkdir(parents=True)
    for path, size in ((work / "frames/a/1", 3 << 30), (work / "train.py", 1 << 20), (data, 2 << 30)):
        with path.open("wb") as file:
            file.truncate(size)
    monkeypatch.setattr("producers.preparation.pack_workspace", lambda *_: pytest.fail("it was packed"))
    with pytest.raises(InvalidSpec) as caught:
        client.submit(**SPEC, workspace=work, inputs={"data": data}, disk="4GiB")
    (problem,) = caught.value.problems
    told = "workspace has 3 GiB, most of it in 'frames/a/' (3 GiB), './' (1 MiB); inputs.data has 2 GiB"
    assert problem.path == "disk"
    assert problem.message.startswith(
        f"4 GiB is less than its files: {told} (list what is not needed in .jobqueueignore"
    )


def test_a_large_workspace_is_warned_of_before_it_is_packed(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.bin").write_bytes(b"0" * 3000)
    monkeypatch.setattr("producers.packaging._LARGE_BYTES", 1000)
    monkeypatch.setattr("producers.preparation.pack_workspace", lambda *_: pytest.fail("it was packed first"))
    with pytest.warns() as caught, pytest.raises(pytest.fail.Exception):
        client.submit(**SPEC, workspace=tmp_path)
    assert "weights.bin (2.93 KiB)" in str(caught[0].message)
