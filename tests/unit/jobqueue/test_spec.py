"""What people write becomes a spec of plain numbers, or an error that names every wrong field and its fix."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from strategies import names, specs

from jobqueue.artifacts import Artifact
from jobqueue.errors import InvalidSpec
from jobqueue.spec import ExperimentSpec, is_name, parse_spec

SHORTEST: dict[str, Any] = {"image": "busybox", "command": "true"}
HALF_A_CHARACTER = "\ud800"


def problems_of(**fields: object) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({**SHORTEST, **fields})
    return {problem.path: problem.message for problem in caught.value.problems}


def test_everything_people_write_becomes_plain_numbers() -> None:
    spec = parse_spec(
        {
            "image": "python:3.12-slim",
            "command": "python train.py --name 'a b'",
            "memory": "16GiB", "disk": "50GB", "shm_size": "8GiB", "gpu_memory": "24GiB", "gpus": 1, "cpus": 4,
            "timeout": "6h", "expires": "2d", "stall_timeout": "PT10M",
            "env": {"SEED": 1, "RATE": 0.5}, "outputs": ["model.pt", "metrics/", "/workspace/logs/"],
        }
    )  # fmt: skip
    assert spec.command == ("python", "train.py", "--name", "a b")
    assert (spec.memory, spec.disk, spec.shm_size, spec.gpu_memory) == (16 * 2**30, 50 * 10**9, 8 * 2**30, 24 * 2**30)
    assert (spec.timeout, spec.expires) == (timedelta(hours=6), timedelta(days=2))
    assert spec.stall_timeout == timedelta(minutes=10)
    assert spec.env == {"SEED": "1", "RATE": "0.5"}
    assert spec.outputs == ("model.pt", "metrics/", "logs/")


def test_what_is_left_out_has_the_documented_defaults() -> None:
    spec = parse_spec(SHORTEST)
    assert spec.outputs == ("outputs/",)
    assert (spec.gpus, spec.cpus, spec.retries, spec.network, spec.project) == (0, 1.0, 0, "none", "default")
    assert (spec.queue, spec.name, spec.workspace, spec.stall_timeout) == (None, None, None, None)


def test_studioml_names_are_accepted() -> None:
    spec = parse_spec({**SHORTEST, "ram": "4gb", "hdd": "10gb", "gpuMem": "8gb", "gpuCount": 2, "max_duration": "20m"})
    assert (spec.memory, spec.disk, spec.gpu_memory) == (4 * 2**30, 10 * 2**30, 8 * 2**30)
    assert (spec.gpus, spec.timeout) == (2, timedelta(minutes=20))


def test_a_field_that_is_given_under_both_its_names_is_refused() -> None:
    assert "memory" in problems_of(ram="4gb", memory="2GiB")["ram"]
    assert problems_of(ram="4gb", memory="lots").keys() == {"memory", "ram"}


@given(specs())
def test_a_spec_is_the_spec_of_its_own_fields(spec: ExperimentSpec) -> None:
    assert parse_spec({name: getattr(spec, name) for name in ExperimentSpec.model_fields}) == spec


def test_a_spec_never_changes() -> None:
    with pytest.raises(ValidationError):
        parse_spec(SHORTEST).image = "other"  # type: ignore[misc]


def test_every_wrong_field_is_named_at_once() -> None:
    problems = problems_of(
        image="-v /:/host", command=[], cpus=0, memory="lots", timeout="0s", queue="a b", env={"A B": "1"}, gpu=1
    )
    assert set(problems) == {"image", "command", "cpus", "memory", "timeout", "queue", "env.A B", "gpu"}


def test_what_is_wrong_between_fields_is_named_with_what_is_wrong_in_them() -> None:
    problems = problems_of(cpus=0, gpu_memory="8GiB", shm_size="3GiB", env={"A": "1"}, secrets={"A": "2"})
    assert problems.keys() == {"cpus", "gpu_memory", "shm_size", "env.A"}
    assert problems_of(gpus=-1, gpu_memory="8GiB", memory="lots", shm_size="3GiB").keys() == {"gpus", "memory"}


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({})
    told = {problem.path: problem.message for problem in caught.value.problems}
    assert told.keys() == {"image", "command"}
    assert "as 'python:3.12-slim'" in told["image"]
    assert "say what to run" in told["command"]


@pytest.mark.parametrize(
    ("wrong", "meant"), [("gpu", "gpus"), ("comand", "command"), ("max_durations", "max_duration")]
)
def test_a_misspelt_field_is_answered_with_the_one_that_was_meant(wrong: str, meant: str) -> None:
    assert f"did you mean '{meant}'" in problems_of(**{wrong: 1})[wrong]


def test_an_unknown_field_is_answered_with_all_that_are_known() -> None:
    assert "known: command, cpus" in problems_of(privileged=True)["privileged"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", ""), ("image", "a b"), ("image", "busybox\n"), ("image", "--privileged"), ("image", None),
        ("image", "busybox@sha256:abc"),
        ("command", ""), ("command", "a 'b"), ("command", ["a\0b"]), ("command", ["a", "b\0"]), ("command", 5),
        ("command", [HALF_A_CHARACTER]), ("command", ["x" * 70_000]), ("command", [None]), ("command", ["a", True]),
        ("command", [["a"]]),
        ("outputs", ["/etc/passwd"]), ("outputs", ["../x"]), ("outputs", ["a/../../b"]), ("outputs", [""]),
        ("outputs", ["a\nb"]), ("outputs", [HALF_A_CHARACTER]), ("outputs", ["x"] * 257),
        ("outputs", ["/workspace/../x"]), ("outputs", ["a" * 256]), ("outputs", ["a/" * 1500]), ("outputs", ["~me/x"]),
        ("outputs", ["~/model.pt"]), ("outputs", [b"x"]), ("image", "a" * 500),
        ("env", {"LD_PRELOAD": "x"}), ("env", {"NVIDIA_VISIBLE_DEVICES": "all"}), ("env", {"JOBQUEUE_TOKEN": "1"}),
        ("env", {"CUDA_VISIBLE_DEVICES": "0"}), ("env", {"DOCKER_HOST": "x"}), ("env", {"1A": "x"}),
        ("env", {"A": "\0"}), ("env", {"A": HALF_A_CHARACTER}), ("env", {"A": None}), ("env", {"A": True}),
        ("env", {"A": "x" * 70_000}), ("env", {"A=B": "x"}), ("env", {"A\n": "x"}),
        ("secrets", {"A": HALF_A_CHARACTER}), ("secrets", {"LD_AUDIT": "x"}), ("secrets", "A=1"),
        ("cpus", 0), ("cpus", -1), ("cpus", float("nan")), ("cpus", float("inf")), ("cpus", 5000), ("cpus", "x"),
        ("gpus", True), ("cpus", True), ("retries", False), ("outputs", "model.pt"), ("env", ["SEED"]),
        ("gpus", -1), ("gpus", 1.5), ("gpus", 2000), ("gpu_memory", "1GiB"),
        ("memory", 0), ("memory", "0"), ("disk", -1), ("shm_size", "1TiB"), ("shm_size", 0),
        ("timeout", 0), ("timeout", "-1s"), ("timeout", "20y"), ("expires", "0s"), ("expires", "31d"),
        ("stall_timeout", "0s"),
        ("retries", -1), ("retries", 101), ("network", "host"), ("network", "container:x"),
        ("project", ""), ("project", "a/b"), ("project", "x" * 65), ("queue", ""), ("queue", "-a"), ("queue", "x" * 71),
        ("queue", "ä"), ("queue", "a\n"),
        ("name", ""), ("name", "  "), ("name", "a\x1b[31m"), ("name", "x" * 129), ("name", HALF_A_CHARACTER),
        ("labels", {"": "x"}), ("labels", {"a": HALF_A_CHARACTER}), ("idempotency_key", ""),
        ("workspace", {"uri": "s3://a/b"}), ("workspace", "."), ("workspace", Artifact(uri="")),
        ("workspace", Artifact(uri="s3://a\n")), ("workspace", Artifact(uri="s3://a", sha256="../../x")),
        ("workspace", Artifact(uri="s3://a", sha256="A" * 64)), ("workspace", Artifact(uri="s3://a", size_bytes=-1)),
        ("workspace", Artifact(uri="s3://a", unpacked_bytes=2**63)), ("workspace", Artifact(uri=HALF_A_CHARACTER)),
        ("inputs", {"../x": Artifact(uri="s3://a")}), ("inputs", {"": Artifact(uri="s3://a")}),
        ("inputs", {".hidden": Artifact(uri="s3://a")}), ("inputs", {"a": "s3://a"}),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name_with_what_is_wrong(field: str, value: object) -> None:
    problems = problems_of(**{field: value})
    assert {path.split(".")[0] for path in problems} == {field}
    assert all(problems.values())


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("command", "echo 'a", "use a list of words"),
        ("outputs", "model.pt", "not a list (use one, as in ['model.pt'"),
        ("env", ["SEED=1"], "not a mapping (use names and values"),
        ("labels", "a=b", "not a mapping (use names and values"),
        ("gpus", True, "not a number: True"),
        ("env", {f"A{number}": "x" for number in range(600)}, "more than 512 of them (leave some out"),
    ],
)
def test_what_has_the_wrong_shape_is_told_the_right_one(field: str, value: object, fix: str) -> None:
    assert fix in problems_of(**{field: value})[field]


@pytest.mark.parametrize("path", ["../x", "a/../../b", "/etc/passwd", "/workspace/../x", "~/model.pt", "~me/x"])
def test_an_output_outside_the_workspace_is_told_to_be_there(path: str) -> None:
    (told,) = problems_of(outputs=[path]).values()
    assert "outside the workspace" in told


def test_numbers_and_paths_of_a_command_are_written_out() -> None:
    spec = parse_spec({**SHORTEST, "command": ["python", Path("src/train.py"), "--lr", 0.1, "--seed", 3]})
    assert spec.command == ("python", "src/train.py", "--lr", "0.1", "--seed", "3")


def test_the_numbers_of_a_notebook_are_numbers() -> None:
    spec = parse_spec({
        "image": "python:3.12", "command": ["train", np.float32(0.5), np.int64(3)], "env": {"SEED": np.int64(7)},
        "cpus": np.float32(2), "gpus": np.int64(0), "memory": np.int64(1 << 30), "timeout": np.int32(90),
    })  # fmt: skip
    assert (spec.command, dict(spec.env)) == (("train", "0.5", "3"), {"SEED": "7"})
    assert (spec.cpus, spec.gpus, spec.memory, spec.timeout) == (2.0, 0, 1 << 30, timedelta(seconds=90))
    with pytest.raises(InvalidSpec, match="command: not a word"):
        parse_spec({"image": "python:3.12", "command": ["train", np.bool_(1)]})


def test_outputs_may_be_paths_and_begin_with_a_tilde_that_is_none() -> None:
    spec = parse_spec({**SHORTEST, "outputs": [Path("a/model.pt"), "~lock", "."]})
    assert spec.outputs == ("a/model.pt", "~lock", ".")


@pytest.mark.parametrize("field", ["image", "command", "outputs", "queue", "name", "memory", "timeout"])
def test_what_is_huge_is_told_in_short(field: str) -> None:
    told = problems_of(**{field: ["~/" + "x" * 100_000] if field == "outputs" else "~" * 100_000})
    assert all(len(message) < 250 for message in told.values())


def test_a_command_that_is_far_too_long_is_refused_at_once() -> None:
    assert "longer than 65536 bytes" in problems_of(command="x" * 10_000_000)["command"]  # splitting it took hours


def test_a_refusal_never_shows_a_secret_or_a_signed_address() -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(
            {
                **SHORTEST,
                "secrets": {"A": "hunter2\0", "B": ["hunter2"], "LD_X": "hunter2"},
                "workspace": Artifact(uri="s3://a?X-Amz-Signature=hunter2\n"),
                "inputs": {"a": Artifact(uri="s3://a?X-Amz-Signature=hunter2", sha256="x"), "b": "s3://hunter2"},
            }
        )
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(parse_spec({**SHORTEST, "secrets": {"A": "hunter2"}}))


def test_a_variable_is_either_secret_or_not() -> None:
    assert "env.A" in problems_of(env={"A": "1", "B": "2"}, secrets={"A": "1"})


def test_resources_are_what_scheduling_needs() -> None:
    spec = parse_spec({**SHORTEST, "cpus": 2, "gpus": 3, "gpu_memory": "1GiB"})
    assert (spec.resources.cpus, spec.resources.gpus, spec.resources.gpu_memory_bytes) == (2.0, 3, 2**30)


@given(names)
def test_a_name_is_a_name(name: str) -> None:
    assert is_name(name)
    assert not is_name(name, limit=len(name) - 1)


@given(st.dictionaries(st.sampled_from(sorted(ExperimentSpec.model_fields)), st.text() | st.integers() | st.none()))
def test_any_fields_make_a_spec_or_an_error_of_ours(fields: dict[str, Any]) -> None:
    try:
        parse_spec(fields)
    except InvalidSpec as error:
        assert error.problems  # noqa: PT017 - either way out is right
