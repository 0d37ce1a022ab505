"""What a node refuses, and what a container is told."""

import getpass
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Reason
from jobqueue.registry.base import Lease
from jobqueue.resources import Offer
from jobqueue.spec import ExperimentSpec, parse_spec
from workers.attempt.planning import THREAD_VARIABLES, make_plan, refuse
from workers.attempt.runtimes.base import Plan
from workers.attempt.site import Policy

POLICY = Policy(
    images=("python:3.*", "ours/*"), networks=("none",), max_timeout=timedelta(days=2), log_limit_bytes=2**20
)
OFFER = Offer(cpus=4, memory_bytes=8 * 2**30, disk_bytes=100 * 2**30)


def spec_of(**fields: Any) -> ExperimentSpec:
    return parse_spec({"image": "python:3.12", "command": ["true"], **fields})


def plan_of(spec: ExperimentSpec, **options: Any) -> Plan:
    return make_plan(
        spec,
        lease=Lease(experiment_id=make_experiment_id(), attempt=2, token=77),
        queue="default_cpu",
        node_id="host",
        image="python@sha256:0",
        workspace=Path("/node/attempts/a/workspace"),
        inputs={},
        grace=timedelta(seconds=30),
        **options,
    )


@pytest.mark.parametrize("image", ["python:3.12", "ours/anything:1"])
def test_what_fits_and_is_allowed_may_run(image: str) -> None:
    assert refuse(spec_of(image=image), policy=POLICY, offer=OFFER) is None


def test_a_network_that_the_runtime_cannot_offer_now_is_for_another_node() -> None:
    policy = replace(POLICY, networks=("none", "egress"))
    assert refuse(spec_of(network="egress"), policy=policy, offer=OFFER) is None
    outcome = refuse(spec_of(network="egress"), policy=policy, offer=OFFER, find_fault=lambda network: f"no {network}")
    assert outcome is not None
    assert outcome.reason is Reason.DOES_NOT_FIT
    assert "cannot offer: no egress" in outcome.detail


@pytest.mark.parametrize("image", ["python:2.7", "theirs/ours:1", "registry:5000/python:3.12"])
def test_an_image_that_no_pattern_matches_is_refused_for_good(image: str) -> None:
    outcome = refuse(spec_of(image=image), policy=POLICY, offer=OFFER)
    assert outcome is not None
    assert (outcome.reason, outcome.detail) == (Reason.IMAGE_REFUSED, "this node allows python:3.*, ours/*")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cpus": 8}, "8 cpus"),
        ({"memory": "16GiB"}, "16 GiB of memory"),
        ({"disk": "1TiB"}, "of disk"),
        ({"gpus": 1}, "1 GPU"),
        ({"network": "bridge"}, "the network 'bridge'"),
        ({"timeout": "3d"}, "3d"),
    ],
)
def test_what_another_node_might_do_is_handed_back_with_the_numbers(fields: dict[str, Any], said: str) -> None:
    outcome = refuse(spec_of(**fields), policy=POLICY, offer=OFFER)
    assert outcome is not None
    assert outcome.reason is Reason.DOES_NOT_FIT
    assert said in outcome.detail


def test_every_misfit_is_named_at_once() -> None:
    outcome = refuse(spec_of(cpus=8, memory="16GiB", network="bridge"), policy=POLICY, offer=OFFER)
    assert outcome is not None
    assert outcome.detail.count(";") == 2


def test_a_container_knows_who_it_is_and_until_when() -> None:
    plan = plan_of(spec_of(name="mine", timeout="1h", project="vision", env={"SEED": "1"}, secrets={"KEY": "s"}))
    env = dict(plan.env)
    deadline = datetime.fromisoformat(env.pop("JOBQUEUE_DEADLINE"))
    assert timedelta(minutes=59) < deadline - datetime.now(UTC) <= timedelta(hours=1)
    assert env == {
        "HOME": "/tmp",
        "USER": "experiment",
        "PYTHONUNBUFFERED": "1",
        "NVIDIA_VISIBLE_DEVICES": "void",
        "CUDA_VISIBLE_DEVICES": "-1",
        **dict.fromkeys(THREAD_VARIABLES, "1"),
        "SEED": "1",
        "KEY": "s",
        "JOBQUEUE_EXPERIMENT_ID": plan.labels.experiment_id,
        "JOBQUEUE_NAME": "mine",
        "JOBQUEUE_ATTEMPT": "2",
        "JOBQUEUE_TOKEN": "77",
        "JOBQUEUE_QUEUE": "default_cpu",
        "JOBQUEUE_PROJECT": "vision",
        "JOBQUEUE_OUTPUTS": "/workspace/outputs",
        "JOBQUEUE_PROGRESS": "/workspace/.jobqueue/progress",
        "JOBQUEUE_GRACE_SECONDS": "30",
        "JOBQUEUE_GPUS": "",
    }


@pytest.mark.parametrize("granted", [(), ("GPU-a",), ("GPU-a", "GPU-b")])
def test_a_container_is_given_the_granted_devices_and_knows_them_by_uuid(granted: tuple[str, ...]) -> None:
    plan = plan_of(spec_of(gpus=len(granted)), gpus=granted)
    assert plan.gpus == granted
    named = {plan.env[name] for name in ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "JOBQUEUE_GPUS")}
    assert named == ({",".join(granted)} if granted else {"void", "-1", ""})


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, "1"), (2.9, "2"), (16, "16")])
def test_libraries_start_as_many_threads_as_there_are_cores_for(cpus: float, threads: str) -> None:
    env = plan_of(spec_of(cpus=cpus, env={"OMP_NUM_THREADS": "7"})).env
    assert [env[name] for name in THREAD_VARIABLES] == ["7", *[threads] * (len(THREAD_VARIABLES) - 1)]
    assert env["RAYON_NUM_THREADS"] == threads  # of tokenizers


@pytest.mark.parametrize(("cpus", "pids"), [(0.5, 512), (8, 512), (8.5, 576), (64, 4096)])
def test_who_has_many_cores_may_have_many_processes(cpus: float, pids: int) -> None:
    assert plan_of(spec_of(cpus=cpus)).pids == pids


def test_the_users_own_home_wins_over_the_default() -> None:
    assert plan_of(spec_of(env={"HOME": "/workspace"})).env["HOME"] == "/workspace"


def test_whoever_asks_for_the_name_of_the_user_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOGNAME", raising=False)
    monkeypatch.setenv("USER", plan_of(spec_of()).env["USER"])
    assert getpass.getuser() == "experiment"


def test_a_plan_shows_no_environment() -> None:
    assert "hunter2" not in repr(plan_of(spec_of(secrets={"KEY": "hunter2"})))
