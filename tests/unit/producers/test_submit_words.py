"""Submitting with every server in this process."""

import ast
import inspect
import pickle
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import jobqueue
import producers
from jobqueue.artifacts import Artifact
from jobqueue.brokers.memory import MemoryBroker
from jobqueue.envelope import open_sealed, verify
from jobqueue.errors import (
    BrokerUnavailable,
    IdempotencyMismatch,
    InvalidSetting,
    InvalidSpec,
    NoSuchQueue,
    NotFound,
    RegistryUnavailable,
)
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import State
from jobqueue.spec import ExperimentSpec, parse_spec
from producers import client as client_module
from producers.client import Client
from producers.preparation import JobqueueWarning
from producers.sending import digest_spec
from producers.submit import grid, submit_experiment

SPEC = {"image": "python:3.12-slim", "command": ["python", "train.py"]}
pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")


def open_message(client: Client, queue: str) -> ExperimentSpec:
    from datetime import UTC, datetime, timedelta

    mail = MemoryBroker().post.receive(queue, timeout=timedelta(seconds=1))
    assert mail is not None
    keys = client._connections.keys
    return open_sealed(verify(mail.body, keys=keys, queue=queue, now=datetime.now(UTC)), keys=keys).spec


def test_what_is_submitted_is_what_a_node_opens(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t")
    exp = client.submit(**SPEC, env={"SEED": 1}, secrets=["WANDB_API_KEY"], memory="16GiB", name="first")

    spec = open_message(client, f"{client.settings.project}_cpu")

    assert (exp.state, exp.attempt, exp.reason, exp.name) == (State.QUEUED, 0, None, "first")
    assert spec.command == ("python", "train.py")
    assert spec.env == {"SEED": "1"}
    assert spec.secrets == {"WANDB_API_KEY": "s3cr3t"}
    assert spec.memory == 16 * 2**30


def test_gpus_go_to_the_projects_gpu_queue(client: Client) -> None:
    client.submit(**SPEC, gpus=1)

    assert open_message(client, f"{client.settings.project}_gpu").gpus == 1


def test_a_workspace_and_inputs_are_uploaded_and_addresses_are_kept(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "train.py").write_text("print(1)")
    table = tmp_path / "table.csv"
    table.write_text("a,b")

    digest = "ab" * 32
    web = f"https://example.org/x?signature=1#sha256={digest.upper()}"
    client.submit(**SPEC, workspace=folder, inputs={"table": str(table), "far": "store:inputs/abc", "web": web})

    spec = open_message(client, f"{client.settings.project}_cpu")
    assert spec.workspace is not None
    assert client._connections.store.size(spec.workspace.uri.removeprefix("store:")) == spec.workspace.size_bytes
    assert spec.inputs["far"] == Artifact(uri="store:inputs/abc")
    assert spec.inputs["web"] == Artifact(uri="https://example.org/x?signature=1", sha256=digest)
    assert client._connections.store.size(spec.inputs["table"].uri.removeprefix("store:")) == 3


def test_every_wrong_field_is_named_at_once(client: Client) -> None:
    with pytest.raises(InvalidSpec) as caught:
        client.submit(
            image="NOT AN IMAGE",
            memory="8 potatoes",
            workspace="/nowhere/at/all",
            inputs={
                "data": "/nowhere/else",
                "bad name!": "store:x",
                "web": "ftp://example.org/x",
                "nodes": "file:///etc/passwd",
                "w": "s3://a/b#sha256=1",
            },
            secrets=["NOT_SET_ANYWHERE"],
            queue="x_dead",
            priority="urgent",
        )

    paths = {problem.path for problem in caught.value.problems}
    assert {
        "image",
        "command",
        "memory",
        "inputs.data",
        "inputs.web",
        "inputs.nodes",
        "inputs.w",
        "secrets.NOT_SET_ANYWHERE",
        "priority",
    } <= paths
    assert {"inputs.bad name!", "workspace"} <= paths


def test_a_companion_is_no_request_queue(client: Client) -> None:
    with pytest.raises(InvalidSpec, match="not a request queue"):
        client.submit(**SPEC, queue="x_dead")


@pytest.mark.parametrize("field", ["inputs", "secrets", "workspace"])
def test_nonsense_is_a_problem_and_not_a_crash(client: Client, field: str) -> None:
    with pytest.raises(InvalidSpec, match=field):
        client.submit(**SPEC, **{field: 7})


def test_a_named_queue_has_to_exist_and_nothing_is_left_of_the_attempt(client: Client) -> None:
    with pytest.raises(NoSuchQueue, match="no queue 'elsewhere'"):
        client.submit(**SPEC, queue="elsewhere", name="orphan")

    assert client.list(name="orphan") == []


def test_one_idempotency_key_is_one_experiment(client: Client) -> None:
    first = client.submit(**SPEC, idempotency_key="k", env={"A": 1, "B": 2})
    again = client.submit(**SPEC, idempotency_key="k", env={"B": 2, "A": 1})

    assert again is first
    with pytest.raises(IdempotencyMismatch):
        client.submit(**SPEC, idempotency_key="k", env={"A": 2})


def test_the_digest_knows_neither_the_order_nor_the_values_of_secrets() -> None:
    one = parse_spec({**SPEC, "secrets": {"A": "1", "B": "2"}, "idempotency_key": "x"})
    other = parse_spec({**SPEC, "secrets": {"B": "3", "A": "4"}, "idempotency_key": "y"})

    assert digest_spec(one) == digest_spec(other)
    assert digest_spec(one) != digest_spec(parse_spec(SPEC))


def test_a_message_that_the_broker_refused_is_withdrawn(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BrokerUnavailable("away")

    monkeypatch.setattr(client._sender._publisher, "publish", refuse)
    with pytest.raises(BrokerUnavailable):
        client.submit(**SPEC, name="refused")

    assert client.list(name="refused") == []


def test_nothing_is_uploaded_while_the_broker_is_away(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> bool:
        raise BrokerUnavailable("away")

    client.submit(**SPEC)  # the queue is known from now on, and has to be asked for all the same
    (tmp_path / "train.py").write_text("print(1)")
    monkeypatch.setattr(client._connections.broker.queues, "exists", refuse)
    with pytest.raises(BrokerUnavailable):
        client.submit(**SPEC, workspace=tmp_path)

    assert list(client._connections.store.list("")) == []


def test_a_default_queue_that_was_deleted_is_made_again(client: Client) -> None:
    queue = f"{client.settings.project}_cpu"
    client.submit(**SPEC)
    publish, calls = client._sender._publisher.publish, []

    def fail_once(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            MemoryBroker().queues.delete(queue)
            raise NoSuchQueue("gone")
        publish(*args, **kwargs)  # type: ignore[arg-type]

    client._sender._publisher.publish = fail_once  # type: ignore[method-assign]
    client.submit(**SPEC)

    assert len(calls) == 2
    assert open_message(client, queue).image == "python:3.12-slim"


def test_many_are_checked_before_any_is_sent(client: Client) -> None:
    with pytest.raises(InvalidSpec) as caught:
        client.submit_many([SPEC, {**SPEC, "memory": "lots"}, {**SPEC, "cpus": -1}])

    assert [problem.path for problem in caught.value.problems] == ["[1].memory", "[2].cpus"]
    assert client.list(project=client.settings.project) == []


def test_an_outage_in_the_middle_of_many_says_what_was_sent(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    send, count = client._sender.send, []

    def fail_third(*args: object, **kwargs: object) -> object:
        count.append(1)
        if len(count) == 3:
            raise RegistryUnavailable("away")
        return send(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(client._sender, "send", fail_third)
    monkeypatch.setattr("producers.client._AT_ONCE", 2)
    with pytest.raises(RegistryUnavailable) as caught:
        client.submit_many([SPEC] * 5)

    assert caught.value.__notes__[0].startswith("4 of 5 were submitted before: exp-")


def test_a_shared_workspace_is_packed_once(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from producers import preparation

    folder, packs = tmp_path / "work", []
    folder.mkdir()
    pack = preparation.pack_workspace
    monkeypatch.setattr(preparation, "pack_workspace", lambda *args: packs.append(1) or pack(*args))

    client.submit_many([{**SPEC, "workspace": folder}] * 3)

    assert len(packs) == 1


def test_get_understands_ids_beginnings_names_and_last(client: Client) -> None:
    first = client.submit(**SPEC, name="shared-name")
    second = client.submit(**SPEC, name="shared-name")

    assert client.get(first.id) is first
    assert client.get(second.id.removeprefix("exp-")[:25]) is second
    assert client.get("shared-name") is second
    assert client.get("last") is second
    with pytest.raises(NotFound, match="several"):
        client.get("exp-0")
    with pytest.raises(NotFound, match="no experiment"):
        client.get("never-given")


def test_an_id_is_understood_as_it_is_pasted(client: Client) -> None:
    exp = client.submit(**SPEC)

    assert client.get(f" {exp.id.upper()}\n") is exp


@pytest.mark.parametrize("text", ["", " ", None, 5, b"last", ["last"]])
def test_what_names_no_experiment_is_said_to_name_none(client: Client, text: Any) -> None:
    client.submit(**SPEC)
    with pytest.raises(InvalidSpec, match=r"not an id or a name: .*use an id"):
        client.get(text)


@pytest.mark.security_case("huge body, slow client, path traversal in ids")
@pytest.mark.parametrize("text", ["exp-", "exp-../../x", "../../etc/passwd", "exp-*", "*", "\0", "\ud800", "x" * 10**6])
def test_what_only_looks_like_an_id_is_not_found(client: Client, text: str) -> None:
    """What is typed for an id is a path, a pattern, half a character, or a megabyte.

    Refused: there is no such experiment, said in a short sentence.
    Evidence: the error of the call that every command makes.
    """
    client.submit(**SPEC)
    with pytest.raises(NotFound) as caught:
        client.get(text)
    assert len(str(caught.value)) < 200


@pytest.mark.security_case("huge body, slow client, path traversal in ids")
@pytest.mark.parametrize("text", ["", "last", "exp-../../x", "../../etc"])
def test_a_handle_is_made_of_an_id_only(client: Client, text: str) -> None:
    """A program is given a path for an id, and makes a handle of it that would read the store there.

    Refused: a handle is made of an id alone.
    Evidence: the error.
    """
    with pytest.raises(InvalidSpec, match="not an experiment id"):
        client.handle(ExperimentId(text))


def test_the_list_is_the_newest_first(client: Client) -> None:
    handles = client.submit_many([SPEC] * 3)

    assert client.list(project=client.settings.project) == handles[::-1]
    assert client.list(project=client.settings.project, limit=1) == handles[-1:]


def test_a_handle_pickles_to_its_id(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_default", [client])
    exp = client.submit(**SPEC)

    data = pickle.dumps(exp)

    assert len(data) < 120
    assert pickle.loads(data) is exp


@pytest.mark.parametrize(
    ("image", "is_warned"),
    [
        ("python", True),
        ("python:latest", True),
        ("host:5000/python", True),
        ("host:5000/python:3.12", False),
        ("python:3.12-slim", False),
        ("python@sha256:" + "0" * 64, False),
    ],
)
def test_an_image_without_a_pin_is_warned_of(client: Client, image: str, is_warned: bool) -> None:  # noqa: FBT001
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client.submit(image=image, command="true")

    assert any("not pinned" in str(warning.message) for warning in caught) is is_warned


def test_a_warning_points_at_the_users_line_and_says_that_nobody_serves(client: Client) -> None:
    with pytest.warns(JobqueueWarning, match="no worker serves") as caught:
        client.submit(**SPEC)

    assert caught[0].filename == __file__


def test_who_turns_warnings_into_errors_has_submitted_nothing(client: Client) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(JobqueueWarning):
            client.submit(**SPEC, name="strict")

    assert client.list(name="strict") == []


def test_a_secret_is_in_no_text_of_the_handle(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("TOKEN", "s3cr3t-value")
    exp = client.submit(**SPEC, secrets=["TOKEN"])

    texts = [repr(exp), exp._repr_html_(), exp.why(), caplog.text, repr(exp.look())]
    assert not any("s3cr3t-value" in text for text in texts)


def test_a_grid_is_every_combination() -> None:
    assert grid(lr=[0.1, 0.01], seed=[1, 2]) == [
        {"lr": 0.1, "seed": 1},
        {"lr": 0.1, "seed": 2},
        {"lr": 0.01, "seed": 1},
        {"lr": 0.01, "seed": 2},
    ]


@pytest.mark.parametrize("settings", ["redis://host", {"broker_url": "redis://host"}, 5, ""])
def test_what_are_no_settings_make_no_client(settings: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"not settings: .* \(use Client"):
        Client(settings)


def test_an_axis_of_a_grid_is_a_list_of_values() -> None:
    with pytest.raises(InvalidSpec) as caught:
        grid(lr=0.1, name="abc", seed=[1], data=b"abc")  # type: ignore[arg-type]

    told = {problem.path: problem.message for problem in caught.value.problems}
    assert told.keys() == {"lr", "name", "data"}
    assert told["lr"] == "not a list of values (use [0.1])"
    assert grid(seed=(number for number in range(2)), lr=[]) == []


def test_a_notebook_completes_every_field() -> None:
    assert set(inspect.signature(submit_experiment).parameters) == set(ExperimentSpec.model_fields)
    told = re.findall("^    ([a-z_, ]+): ", str(inspect.getdoc(submit_experiment)), flags=re.MULTILINE)
    assert {name for names in told for name in names.split(", ")} == set(ExperimentSpec.model_fields)


_LOOK = """
import sys, time
before = time.process_time()
import {package}
took = time.process_time() - before
heavy = {{"celery", "boto3", "docker", "kombu", "redis", "pydantic", "obstore", "jobqueue.config"}} & set(sys.modules)
assert not heavy, heavy
assert took < 0.15, took
assert "submit_experiment" in dir({package})
"""


@pytest.mark.parametrize("package", ["producers", "jobqueue"])
def test_the_import_loads_nothing(package: str) -> None:
    subprocess.run([sys.executable, "-c", _LOOK.format(package=package)], check=True, cwd=Path(__file__).parents[3])


def test_the_words_of_the_project_lead_to_the_words_here() -> None:
    import jobqueue
    import producers

    assert jobqueue.submit_experiment is submit_experiment
    assert producers.Client is Client
    with pytest.raises(AttributeError):
        _ = producers.nonsense


@pytest.mark.parametrize("package", [jobqueue, producers], ids=lambda package: package.__name__)
def test_type_checkers_and_editors_see_the_words_that_there_are(package: Any) -> None:
    stub = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text())
    seen = {name.asname: node for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names}

    assert set(seen) == set(package.__all__)
    for word, node in seen.items():
        assert getattr(package, word) is getattr(import_module(str(node.module)), word)
