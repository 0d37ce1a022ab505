"""Many at once: what is wrong with any of them is told by its place, and then nothing was submitted."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from jobqueue.errors import InvalidSpec, NoSuchQueue
from producers import packaging
from producers.client import Client
from producers.packaging import scanning

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
SPEC: Mapping[str, Any] = {"image": "python:3.12-slim", "command": "true"}


def paths_of(client: Client, specs: Any) -> list[str]:
    """Return which problems are told, after which nothing is there."""
    with pytest.raises(InvalidSpec) as caught:
        client.submit_many(specs)
    assert client.list(project=client.settings.project) == []
    return [problem.path for problem in caught.value.problems]


@pytest.mark.parametrize("specs", [5, None, "image", b"image", SPEC], ids=lambda specs: type(specs).__name__)
def test_what_is_no_list_of_specs_is_said_to_be_none(client: Client, specs: object) -> None:
    assert paths_of(client, specs) == ["specs"]


@pytest.mark.parametrize("wrong", [5, None, "x", [("image", "x")], {"image"}], ids=lambda wrong: type(wrong).__name__)
def test_one_that_is_no_mapping_is_named_by_its_place(client: Client, wrong: object) -> None:
    assert paths_of(client, [SPEC, wrong, SPEC]) == ["[1]"]


def test_what_is_no_mapping_is_not_shown_for_it_may_hold_a_secret(client: Client) -> None:
    with pytest.raises(InvalidSpec) as caught:
        client.submit_many([[("secrets", {"TOKEN": "hunter2"})]])  # type: ignore[list-item]

    assert "hunter2" not in str(caught.value)


def test_all_that_is_wrong_with_all_of_them_is_told_at_once(client: Client) -> None:
    specs = (spec for spec in [SPEC, {**SPEC, "cpus": -1, "memory": "lots"}, 7, {5: 6}])

    assert paths_of(client, specs) == ["[1].cpus", "[1].memory", "[2]", "[3].image", "[3].command", "[3].5"]


@pytest.mark.parametrize("specs", [[], (), iter(())])
def test_none_at_all_is_fine(client: Client, specs: Any) -> None:
    assert client.submit_many(specs) == []


def test_any_mapping_and_any_iterable_will_do(client: Client) -> None:
    handles = client.submit_many(MappingProxyType(dict(SPEC)) for _ in range(3))

    assert client.list(project=client.settings.project) == handles[::-1]


def test_what_ends_a_generator_has_submitted_nothing(client: Client) -> None:
    def specs() -> Iterator[Mapping[str, Any]]:
        yield SPEC
        raise KeyError("lr")

    with pytest.raises(KeyError, match="lr"):
        client.submit_many(specs())
    assert client.list(project=client.settings.project) == []


def test_one_that_is_too_large_as_a_message_is_named_by_its_place(client: Client) -> None:
    large = {**SPEC, "labels": {"notes": "x" * 300_000}}

    assert paths_of(client, [SPEC, large, SPEC]) == ["[1]"]


def test_a_queue_that_is_not_there_is_told_with_what_was_submitted_before(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producers.client._AT_ONCE", 2)
    with pytest.raises(NoSuchQueue) as caught:
        client.submit_many([SPEC, SPEC, {**SPEC, "queue": "nowhere"}])

    assert caught.value.__notes__[0].startswith("2 of 3 were submitted before: exp-")


def test_who_interrupts_is_told_what_was_submitted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    send, count = client._sender.send, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return send(*args, **kwargs)

    monkeypatch.setattr("producers.client._AT_ONCE", 1)
    monkeypatch.setattr(client._sender, "send", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        client.submit_many([SPEC, SPEC])

    assert caught.value.__notes__[0].startswith("1 of 2 were submitted before: exp-")


def test_a_folder_that_all_share_is_looked_at_once_for_each_field(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    look = scanning.scan

    def scan(root: Path, *, field: str, honours_ignores: bool) -> scanning.Scan:
        looks.append(field)
        return look(root, field=field, honours_ignores=honours_ignores)

    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.setattr(packaging, "scan", scan)
    client.submit_many([{**SPEC, "workspace": folder, "inputs": {"data": folder}}] * 4)

    assert sorted(looks) == ["inputs.data", "inputs.data", "workspace", "workspace"], "to check it, and to pack it"
