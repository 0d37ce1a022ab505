"""A handle that is copied, pickled, or opened where other settings are: one experiment, or a clear answer."""

import copy
import gc
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobqueue.errors import InvalidSpec, NotFound
from producers import client as client_module
from producers.client import Client, reopen
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")


@pytest.fixture
def other(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """The process's own client, whose settings name another registry that knows nothing."""
    socket = tmp_path / "nobody.sock"
    settings = client.settings.model_copy(update={"registry_url": f"redis+socket://:hunter2@{socket}"})
    with Client(settings) as opened:
        monkeypatch.setattr(client_module, "_default", [opened])
        yield opened


def test_a_copy_is_the_handle_itself(exp: Experiment) -> None:
    assert copy.copy(exp) is exp
    assert copy.deepcopy({"runs": [exp]})["runs"][0] is exp


def test_a_pickled_handle_goes_back_to_the_client_of_its_registry(exp: Experiment, other: Client) -> None:
    data = pickle.dumps(exp)

    assert len(data) < 120
    assert pickle.loads(data) is exp
    assert exp.id not in other._handles


def test_a_pickled_handle_tells_nothing_but_its_id(other: Client, exp: Experiment) -> None:
    foreign = other.handle(exp.id)

    assert b"hunter2" not in pickle.dumps(foreign)
    assert b"nobody.sock" not in pickle.dumps(foreign)


def test_without_a_client_of_its_registry_it_asks_the_one_of_the_environment(
    client: Client, exp: Experiment, other: Client
) -> None:
    data, experiment_id = pickle.dumps(exp), exp.id
    client.close()

    found = pickle.loads(data)

    assert found.id == experiment_id
    assert other._handles[experiment_id] is found


def test_what_the_registry_does_not_know_is_said_with_the_registry_and_the_way_out(client: Client) -> None:
    unknown = "exp-01arz3ndektsv4rrffq69g5fav"

    with pytest.raises(NotFound) as caught:
        _ = reopen(unknown, client._connections.site).state

    assert f"the registry memory:// does not know {unknown}" in caught.value.message
    assert "Client(settings).get(id) asks another registry" in caught.value.hint
    for ask in (lambda: client.get(unknown), reopen(unknown, client._connections.site).cancel):
        with pytest.raises(NotFound) as again:
            ask()
        assert str(again.value) == str(caught.value)
    assert "submitted with other settings" in caught.value.hint


def test_a_pickle_of_before_still_opens(exp: Experiment, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_default", [client])

    assert reopen(exp.id) is exp


@pytest.mark.parametrize("text", ["", "../../etc", "last"])
def test_a_pickle_that_was_made_by_hand_opens_nothing(
    client: Client, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_default", [client])
    with pytest.raises(InvalidSpec, match="not an experiment id"):
        reopen(text)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_opens_a_pickle_of_its_parent(client: Client, exp: Experiment) -> None:
    data = pickle.dumps(exp)
    gc.collect()
    child = os.fork()
    if child == 0:
        os._exit(0 if pickle.loads(data).state == "QUEUED" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
